"""What is played of what was asked, and what is refused before anything is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.attacks import PGD, make_attack
from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import counted_episodes, evaluate
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from tests.evaluation.players import Opaque, moves, sign_reader, signs, suite, team

SPREAD = resolve("simple_spread_v3", {"max_cycles": 6})
CONTINUOUS = resolve("simple_spread_v3", {"max_cycles": 6, "continuous_actions": True})


class TestAdmission:
    def test_a_suite_leaves_out_what_does_not_fit_and_says_so(self) -> None:
        spec = resolve("simple_spread_v3", {"max_cycles": 3, "continuous_actions": True})
        chosen = suite(attacks=["noise", "pgd-margin", "critic", "transfer", "pgd"], epsilons=[0.1])
        result = evaluate(team(spec), suite=chosen, episodes=2, selection_episodes=0)
        assert [row.attack.name for row in result.attacks] == ["noise", "pgd"]
        reasons = {skipped.attack: skipped.reason for skipped in result.skipped}
        assert "categorical" in reasons["pgd-margin"]
        assert "robust-sarsa" in reasons["critic"]
        assert "surrogate" in reasons["transfer"]

    def test_what_was_asked_for_by_name_is_refused_before_anything_is_played(self) -> None:
        for name, message in (("critic", "a victim with a critic"), ("transfer", "a surrogate")):
            for beside in (None, suite(attacks=["noise", "robust-sarsa"])):
                with pytest.raises(ValueError, match=f"expected {message}"):
                    evaluate(team(signs(), sign_reader()), suite=beside, attacks=[(name, 0.1)])

    def test_a_policy_that_torch_cannot_follow(self) -> None:
        victim = team(signs(), Opaque())
        with pytest.raises(ValueError, match="cannot differentiate by its inputs; use square"):
            evaluate(victim, attacks=[("pgd", 1.1)])
        result = evaluate(victim, attacks=[("square", 1.1)], episodes=4)
        assert result.attacks[0].mean == -result.clean_return
        (check,) = (check for check in result.checks if check.name == "gradients")
        assert check.verdict == "warn"
        assert "cannot be differentiated" in check.text

    def test_a_surrogate_that_torch_cannot_follow_is_refused_before_anything_is_played(self) -> None:
        victim = team(signs(), sign_reader())
        surrogate = team(signs(), Opaque())
        with pytest.raises(ValueError, match="a surrogate with gradients, got one for 'agent_0'"):
            evaluate(victim, attacks=[("transfer", 1.1)], surrogates={"opaque": surrogate})
        method = make_attack("square", epsilon=1.0)
        blind = make_attack("transfer", epsilon=1.1, surrogate=surrogate, method=method)
        result = evaluate(victim, attacks=[(blind, 1.1)], episodes=4)
        assert result.attacks[0].mean == -result.clean_return

    def test_a_surrogate_is_used_and_named(self) -> None:
        victim = team(signs(), sign_reader())
        result = evaluate(victim, attacks=[("transfer", 1.1)], episodes=4, surrogates={"twin": victim})
        (row,) = result.attacks
        assert row.mean == -result.clean_return
        assert row.attack.source == "twin"

    def test_a_learned_attack_is_fitted_once_for_all_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fitted = []
        fit = RobustSarsa.fit

        def counted(self: RobustSarsa, *args: Any, **kwargs: Any) -> RobustSarsa:
            fitted.append(self)
            return fit(self, *args, **kwargs)

        monkeypatch.setattr(RobustSarsa, "fit", counted)
        attack = make_attack("robust-sarsa", epsilon=1.0, experience=400, updates=100)
        result = evaluate(
            team(signs(), sign_reader()), attacks=[(attack, 0.9), (attack, 1.1)], episodes=4, num_envs=4
        )
        below, above = result.attacks
        assert below.returns == result.clean.returns
        assert above.mean == -result.clean_return
        assert len(fitted) == 1


class TestRefusals:
    def test_a_network_instead_of_a_victim(self) -> None:
        with pytest.raises(ValueError, match=r"expected a victim, got a Linear.*; make one with Victim"):
            evaluate(sign_reader())  # type: ignore[arg-type]

    def test_an_environment_instead_of_its_name(self) -> None:
        with pytest.raises(ValueError, match="expected the environment's name, import path or factory"):
            evaluate(team(SPREAD), SPREAD.make())  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"episodes": 0}, "episodes: expected a number greater than or equal to 1, got 0"),
            ({"episodes": 2.5}, r"episodes: expected an integer, got 2\.5"),
            ({"episodes": True}, "episodes: expected an integer, got True"),
            ({"episode": 3}, "episode: unknown key; did you mean episodes?"),
            ({"num_envs": -1}, "num_envs: expected a number greater than or equal to 1"),
            ({"seed": -1}, "seed: expected a number greater than or equal to 0, got -1"),
            ({"attacks": [("pdg", 0.1)]}, "expected an attack out of noise, .*; got 'pdg'"),
            ({"attacks": [("pgd", 0.0)]}, r"attacks\.0\.epsilon: expected a number greater than 0, got 0\.0"),
            (
                {"attacks": [("pgd", float("nan"))]},
                r"attacks\.0\.epsilon: expected a number greater than 0, got nan",
            ),
            ({"attacks": [("pgd", "much")]}, r"attacks\.0\.epsilon: expected a number, got 'much'"),
            (
                {"attacks": [("pgd", 0.1), ("fgsm", 0.1), ("pgd", 0.1)]},
                r"attacks: expected each attack once, got pgd at 0\.1 twice",
            ),
            ({"team": "blue"}, "a team out of team; got 'blue'"),
            (
                {"attacks": [(PGD(perturbations=PerturbationSet(epsilon=1, mask=(True,) * 3)), 0.1)]},
                "expected 2 features in mask, got 3",
            ),
        ],
    )
    def test_before_anything_is_played(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(team(signs()), on_progress=lambda _: pytest.fail("it was played"), **settings)

    def test_a_victim_that_names_no_environment_is_asked_for_one(self) -> None:
        nameless = replace(team(signs()), env_name="", env_kwargs={})
        assert evaluate(nameless, signs(), episodes=1).env.name == signs().name
        with pytest.raises(ValueError, match=r"the environment of a victim .* name it: env=NAME"):
            evaluate(nameless, episodes=1)

    def test_attacks_that_the_policy_does_not_admit(self) -> None:
        with pytest.raises(ValueError, match=r"expected a categorical policy .*; use 'kl'"):
            evaluate(team(CONTINUOUS), attacks=[("noise", 0.1), ("pgd-margin", 0.1)], episodes=1)

    def test_integer_observations_play_but_are_not_attacked(self) -> None:
        victim = team(signs(dtype="int64"), sign_reader())
        assert evaluate(victim, episodes=3).clean_return > 0
        with pytest.raises(
            ValueError, match=r"float observations to attack, got .*int64.* for 'agent_0'; leave"
        ):
            evaluate(victim, attacks=[("noise", 0.1)], episodes=3)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (moves(), "plays first, second, got one for agent_0, agent_1, agent_2"),
            (signs(dtype="float64"), "for the observations .*float64.* of 'agent_0', got one for .*float32"),
        ],
    )
    def test_an_environment_that_does_not_fit(self, spec: EnvironmentSpec, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(team(signs()), spec, episodes=1)

    def test_an_environment_that_breaks_is_named(self) -> None:
        with pytest.raises(
            EnvironmentFault, match=r"tests\.evaluation\.toys:Signs, copy 0, step 1: .*'agent_0' is nan"
        ):
            evaluate(team(signs()), signs(broken_at=1), episodes=2)

    def test_endless_episodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counted_episodes, "LONGEST_EPISODE", 40)
        with pytest.raises(ValueError, match="more than 40 steps; give the environment a time limit"):
            evaluate(team(signs(endless=True)), episodes=1)
