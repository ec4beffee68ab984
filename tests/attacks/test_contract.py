"""What the base class guarantees of every attack, present and future."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from math import inf
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from marl_aajr import attacks
from marl_aajr.attacks import (
    ATTACKS,
    FGSM,
    PGD,
    Attack,
    BudgetError,
    greedy_action_changed,
    make_attack,
)
from marl_aajr.core import policy as policy_module
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.objectives import KL, Clean
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet, Unlimited
from marl_aajr.core.word_budget import WordBudget
from tests.adversaries.opponents import against, named, policy_with_critic
from tests.networks import DISTRIBUTIONS, generator, observations, parameters, tanh_policy

BALL = PerturbationSet(epsilon=0.1)
SETS: dict[str, dict[str, Any]] = {
    "linf": {},
    "l2": {"norm": "l2"},
    "masked": {"mask": (True, False, True, False, True, True)},
    "l2 masked and scaled": {
        "norm": "l2",
        "mask": (True, False, True, False, True, True),
        "scale": (1.0, 1.0, 0.1, 1.0, 3.0, 1.0),
    },
    "bounded": {"low": -0.5, "high": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Shove(Attack):
    """Moves every feature by `size`."""

    name: ClassVar[str] = "shove"
    summary: ClassVar[str] = "for tests"
    size: float = 0.1

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        return torch.full_like(obs, self.size)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
def test_every_attack_stays_in_its_set_and_is_not_weaker_than_nothing(
    distribution: ActionDistribution, name: str
) -> None:
    policy, obs = policy_with_critic(distribution), observations(30)
    for attack in against(distribution, **SETS[name]):
        attacked = attack(policy, obs, generator=generator())
        assert attack.perturbations.contains(attacked.delta, obs).all(), attack
        assert attacked.delta.abs().max() > 0, attack
        torch.testing.assert_close(attacked.perturbed, obs + attacked.delta)
        if attack.access != "none":
            assert (attacked.value >= attacked.clean_value).all(), attack
            assert (attacked.value > attacked.clean_value).float().mean() > 0.9, attack


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@pytest.mark.slow
def test_blocks_of_rows_do_not_change_an_attack(
    distribution: ActionDistribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of more rows than a block are common: twenty agents in a hundred copies."""
    policy, obs = policy_with_critic(distribution), observations(30)
    whole = [attack(policy, obs, generator=generator()).delta for attack in against(distribution)]
    monkeypatch.setattr(policy_module, "BLOCK", 7)
    for attack, expected in zip(against(distribution), whole, strict=True):
        delta = attack(policy, obs, generator=generator()).delta
        torch.testing.assert_close(delta, expected, msg=attack.name)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_same_generator_same_attack(distribution: ActionDistribution) -> None:
    policy, obs = policy_with_critic(distribution), observations(8)
    before = torch.get_rng_state()
    for attack in against(distribution):
        first, again, other = (attack(policy, obs, generator=generator(seed)).delta for seed in (3, 3, 4))
        assert torch.equal(first, again), attack
        if attack.access == "none":
            assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before), "global random numbers were drawn"


@pytest.mark.parametrize("attack", [named(name, epsilon=0.1) for name in ATTACKS], ids=str)
def test_attacks_are_values(attack: Attack) -> None:
    assert pickle.loads(pickle.dumps(attack)) == attack
    classes = {cls.__name__: cls for cls in ATTACKS.values()}
    spaces = {cls.__name__: cls for cls in (PerturbationSet, Unlimited, WordBudget)}
    assert eval(repr(attack), {**spaces, **classes}) == attack
    assert hash(attack.at(attack.perturbations.epsilon)) == hash(attack)
    assert attack.at(3.0).perturbations.epsilon == (3.0 if attack.sized else inf)
    assert attack.name
    assert attack.summary
    with pytest.raises(AttributeError):
        attack.objective = "kl"  # type: ignore[misc]


class TestBudget:
    def test_within_rounding_is_projected(self) -> None:
        attacked = Shove(perturbations=BALL, size=0.1 * (1 + 1e-5))(
            tanh_policy(Categorical(5)), observations(), generator=generator()
        )
        assert attacked.delta.abs().max() <= 0.1

    @pytest.mark.parametrize(
        ("settings", "size"), [({}, 0.1002), ({"mask": (False,) + (True,) * 5}, 0.05), ({"high": -9.0}, 0.05)]
    )
    def test_beyond_rounding_is_refused_with_name_and_overshoot(
        self, settings: dict[str, Any], size: float
    ) -> None:
        attack = Shove(perturbations=PerturbationSet(epsilon=0.1, **settings), size=size)
        over = f"{size - 0.1 if not settings else size:.3g}"
        with pytest.raises(BudgetError, match=rf"expected shove to stay in .*7 of 7 rows.*by up to {over}"):
            attack(tanh_policy(Categorical(5)), observations(), generator=generator())

    def test_l2_counts_the_whole_row(self) -> None:
        attack = Shove(perturbations=PerturbationSet(epsilon=0.1, norm="l2"), size=0.05)
        with pytest.raises(BudgetError, match="7 of 7 rows outside"):
            attack(tanh_policy(Categorical(5)), observations(), generator=generator())

    @pytest.mark.parametrize("size", [float("nan"), float("inf")])
    def test_non_finite(self, size: float) -> None:
        with pytest.raises(NonFiniteError, match="the perturbation of shove"):
            Shove(perturbations=BALL, size=size)(
                tanh_policy(Categorical(5)), observations(), generator=generator()
            )

    def test_wrong_shape(self) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Short(Shove):
            def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
                return obs.new_zeros(1, 6)

        with pytest.raises(BudgetError, match=r"a delta \[7, 6\], got \[1, 6\]"):
            Short(perturbations=BALL)(tanh_policy(Categorical(5)), observations(), generator=generator())


class TestJudge:
    def test_an_attack_cannot_grade_itself(self) -> None:
        """One that edits the observations it was lent, to look harmless or strong, changes nothing."""

        @dataclass(frozen=True, kw_only=True)
        class Cheat(Shove):
            def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
                obs.zero_()
                return torch.full_like(obs, 0.1)

        policy, obs = tanh_policy(Categorical(5)), observations()
        honest = Shove(perturbations=BALL)(policy, obs.clone(), generator=generator())
        cheat = Cheat(perturbations=BALL)(policy, obs, generator=generator())
        assert torch.equal(cheat.value, honest.value)
        assert torch.equal(cheat.clean_value, honest.clean_value)

    def test_success_is_a_changed_greedy_action(self) -> None:
        clean, after = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.4, 0.5], [0.4, 0.5]])
        assert greedy_action_changed(Categorical(2), clean, after).tolist() == [False, True]
        multi = MultiCategorical((2, 2))
        both = torch.cat([clean, clean.flip(0)], -1)
        assert greedy_action_changed(multi, both, torch.cat([after, after], -1)).tolist() == [True, True]
        assert greedy_action_changed(multi, both, 2 * both).tolist() == [False, False]

    def test_success_against_a_gaussian_is_one_standard_deviation(self) -> None:
        clean = torch.tensor([[0.0, 0.0, 0.0, -1.0]]).expand(3, 4)  # mean, log σ; σ = 1, 0.37
        after = torch.tensor([[0.9, 0.3, 0.0, -1.0], [0.0, 0.4, 0.0, -1.0], [-1.1, 0.0, 0.0, -1.0]])
        assert greedy_action_changed(DiagGaussian(2), clean, after).tolist() == [False, True, True]

    def test_values_are_the_objective_before_and_after(self) -> None:
        policy, obs = tanh_policy(Categorical(5)), observations()
        attacked = Shove(perturbations=BALL, objective="kl")(policy, obs, generator=generator())
        g = KL().bind(policy, Clean(policy(obs)))
        assert torch.equal(attacked.clean_value, torch.zeros(7, dtype=torch.float64))
        torch.testing.assert_close(attacked.value, g(obs + 0.1))
        assert torch.equal(attacked.outputs, policy(obs + attacked.delta))

    def test_parameters_and_their_gradients_stay_untouched(self) -> None:
        policy = policy_with_critic(Categorical(5))
        kept = [p.detach().clone() for p in parameters(policy)]
        for attack in against(Categorical(5)):
            attacked = attack(policy, observations(), generator=generator())
            assert not attacked.outputs.requires_grad
            assert not attacked.perturbed.requires_grad
        assert all(p.grad is None for p in parameters(policy))
        assert all(torch.equal(p, k) for p, k in zip(parameters(policy), kept, strict=True))

    def test_a_policy_that_breaks_is_named(self) -> None:
        class Breaks(nn.Module):
            def forward(self, obs: Tensor) -> Tensor:
                return torch.where(obs > 0.95, torch.nan, obs)

        with pytest.raises(NonFiniteError, match="the policy's outputs at perturbed observations"):
            Shove(perturbations=BALL)(
                ModulePolicy(Breaks(), Categorical(3)), torch.full((2, 3), 0.9), generator=generator()
            )


class TestRefusals:
    @pytest.mark.parametrize(
        ("obs", "got"),
        [(torch.zeros(3, 6, dtype=torch.int64), r"int64 \[3, 6\]"), (torch.zeros(2, 3, 6), r"\[2, 3, 6\]")],
    )
    def test_observations_that_are_not_float_rows(self, obs: Tensor, got: str) -> None:
        with pytest.raises(ValueError, match=rf"float observations \[B, d\] to attack, got .*{got}"):
            FGSM(perturbations=BALL)(tanh_policy(Categorical(5)), obs, generator=generator())

    def test_margin_against_a_gaussian(self) -> None:
        with pytest.raises(ValueError, match="expected a categorical policy"):
            make_attack("pgd-margin", epsilon=0.1)(
                tanh_policy(DiagGaussian(3)), observations(), generator=generator()
            )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "pdg"}, r"expected an attack out of noise, .*pgd.*; got 'pdg' \(did you mean pgd\?\)"),
            ({"name": "pgd", "step": 3}, r"settings of 'pgd' out of .*steps.*; got step$|step out of"),
            ({"name": "pgd", "sped": 3}, "settings of 'pgd' out of .*norm.*steps.*; got sped"),
            ({"name": "pgd", "epsilon": 0.0}, "epsilon > 0"),
            ({"name": "pgd", "epsilon": None}, "expected an epsilon for 'pgd', got None"),
            ({"name": "delay"}, "expected no epsilon for 'delay', got 0.1; its size is its settings: draws"),
            ({"name": "swap", "epsilon": None, "norm": "l2"}, "settings of 'swap' out of .*; got norm"),
            ({"name": "dropout", "epsilon": None, "share": 0}, r"expected share in \(0, 1\], got 0"),
            ({"name": "bias", "draws": 0}, "an integer draws ≥ 1, got 0"),
            ({"name": "pgd", "steps": 0}, "an integer steps ≥ 1, got 0"),
            ({"name": "pgd", "restarts": 1.5}, "an integer restarts ≥ 1, got 1.5"),
            ({"name": "pgd", "step_size": -0.1}, "step_size > 0"),
            ({"name": "pgd", "objective": "surrogate"}, "auto, kl, margin .* got 'surrogate'"),
            ({"name": "pgd", "objective": "regret"}, "got 'regret'"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_attack(**({"epsilon": 0.1} | settings))


class TestRegistry:
    """Attacks by name: ours, and those of other packages' entry points."""

    def with_entry_points(self, monkeypatch: pytest.MonkeyPatch, **points: str) -> attacks.Registry:
        found = [EntryPoint(name, path, attacks.ENTRY_POINTS) for name, path in points.items()]
        monkeypatch.setattr(attacks, "entry_points", lambda group: found)
        return attacks.Registry()

    def test_it_is_keyed_by_name(self) -> None:
        assert {name: cls.name for name, cls in ATTACKS.items()} == {name: name for name in ATTACKS}
        assert {"robust-sarsa", "sa-rl", "pa-ad"} < set(ATTACKS)

    def test_a_package_adds_an_attack_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = self.with_entry_points(monkeypatch, shove=f"{__name__}:Shove")
        assert known["shove"] is Shove
        assert list(known) == [*ATTACKS, "shove"]

    @pytest.mark.parametrize(
        ("name", "path", "message"),
        [
            ("push", f"{__name__}:Shove", "a subclass of Attack with the name 'push' in .*:Shove"),
            ("shove", f"{__name__}:SETS", "a subclass of Attack with the name 'shove'"),
            ("shove", "no_such_package:Shove", "expected to import the attack 'shove' .*ModuleNotFoundError"),
            ("shove", f"{__name__}:Shave", "expected to import the attack 'shove' .*AttributeError"),
            (
                "pgd",
                f"{__name__}:Shove",
                "names of their own, got 'pgd' of .*Shove, which is an attack",
            ),
        ],
    )
    def test_entry_points_that_are_refused(
        self, name: str, path: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = self.with_entry_points(monkeypatch, **{name: path})
        with pytest.raises(ValueError, match=message):
            known[name]
        assert isinstance(make_attack("pgd", epsilon=0.1), PGD)
