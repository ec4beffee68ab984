"""An evaluation is written and read back as it was; attacks travel as objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError

from marl_aajr.attacks import ATTACKS, FGSM, PGD, Attack, Transfer, UniformNoise, make_attack
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import AttackSpec, Evaluation, evaluate
from tests.evaluation.players import flip, played, sign_reader, signs, team


class TestAttackSpec:
    def test_settings_are_all_but_size_and_norm(self) -> None:
        spec = AttackSpec.of(make_attack("pgd", epsilon=0.25, norm="l2", steps=3, mask=(True, False)))
        assert (spec.name, spec.access, spec.epsilon, spec.norm) == ("pgd", "gradients", 0.25, "l2")
        own = {"objective": "kl", "steps": 3, "step_size": 0.1, "step": "auto", "restarts": 2}
        assert spec.settings == {"mask": [True, False], **own}
        assert spec.described.startswith("norm=l2, mask=[True, False], objective=kl, steps=3")

    @pytest.mark.parametrize("name", [name for name, cls in ATTACKS.items() if cls.sized])
    def test_every_attack_can_be_made_again(self, name: str) -> None:
        of_words = ATTACKS[name].norms == ("words",)
        size: dict[str, object] = {"epsilon": 2.0, "mask": (True, False)}
        if not of_words:
            size = {"epsilon": 0.25, "norm": "l2", "low": (-1.0, 0.0)}
        attack = make_attack(name, **size)  # type: ignore[arg-type]
        spec = AttackSpec.model_validate_json(AttackSpec.of(attack).model_dump_json())
        assert spec == AttackSpec.of(attack)
        assert hash(spec) == hash(AttackSpec.of(attack))
        assert spec.make() == attack

    def test_a_transfer_names_its_source_and_its_method(self) -> None:
        budget = PerturbationSet(epsilon=0.5)
        attack = Transfer(perturbations=budget, source="other", method=FGSM(perturbations=budget))
        spec = AttackSpec.of(attack)
        assert (spec.source, spec.settings["method"]["name"]) == ("other", "fgsm")
        assert spec.anonymous == AttackSpec.of(Transfer(perturbations=budget, method=attack.method))
        assert spec.make() == Transfer(perturbations=budget, method=attack.method)

    def test_another_size_is_another_attack_with_the_same_settings(self) -> None:
        spec = AttackSpec.of(make_attack("pgd", epsilon=0.1))
        assert spec != spec.at(0.2) == AttackSpec.of(make_attack("pgd", epsilon=0.2))

    def test_an_attack_of_your_own_is_described_but_not_known(self) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Mine(UniformNoise):
            name = "mine"
            about: complex = field(default=1j)

        spec = AttackSpec.of(Mine(perturbations=PerturbationSet(epsilon=1.0)))
        assert spec.settings["about"] == "1j"
        with pytest.raises(ValueError, match=r"expected an attack out of .*; got 'mine'"):
            spec.make()


class TestFile:
    def test_what_is_written_is_what_is_read(self) -> None:
        attacks: list[tuple[str | Attack, float]] = [("noise", 1.1), (flip(), 1.1)]
        result = played(
            attacks=attacks,
            budget="agents=1,steps=2,scale=agent_0:0.5",
            replace=["random:agent_0"],
            actions=["greedy", "sampled"],
            selection_episodes=3,
        )
        assert Evaluation.model_validate_json(result.model_dump_json()) == result
        assert result.budget.worst == 1

    def test_unknown_fields_are_refused(self) -> None:
        content = evaluate(team(signs(), sign_reader()), episodes=2).model_dump()
        with pytest.raises(ValidationError, match="something_new"):
            Evaluation.model_validate(content | {"something_new": 1})

    def test_it_holds_plain_values_and_names_the_attack(self) -> None:
        result = evaluate(team(signs(), sign_reader()), attacks=[("pgd", 1.1)], episodes=8, seed=2)
        content = result.model_dump(mode="json")
        assert content["env"]["name"] == "tests.evaluation.toys:Signs"
        assert (content["seed"], content["episodes"], content["level"]) == (2, 8, 0.95)
        (row,) = content["results"][0]["attacks"]
        assert (row["attack"]["name"], row["attack"]["epsilon"]) == ("pgd", 1.1)
        assert row["attack"]["settings"]["steps"] == PGD(perturbations=PerturbationSet(epsilon=1)).steps
