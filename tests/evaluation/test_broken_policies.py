"""The evaluator judged: it must find what is planted, flag what hides, and praise what deserves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import Attack, make_attack
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import Evaluation, Suite, evaluate
from marl_aajr.evaluation.order_checks import lower, objective_checks, return_checks
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.preflight import DecisionSample, Health, examine, report
from marl_aajr.evaluation.protocol import AttackEntry
from marl_aajr.evaluation.result import ActionsResult, Check
from tests.evaluation.broken import Constant, Noisy, Quantized, Saturated, Trigger, Weighted
from tests.evaluation.players import moves, sign_reader, signs, team
from tests.networks import generator

SPEC = signs(longest=2)
SUITE = Suite.model_validate(
    {
        "name": "standard without what must be fitted",
        "summary": "",
        "episodes": 12,
        "selection_episodes": 6,
        "actions": ["greedy"],
        "units": "raw",
        "epsilons": [0.1],
        "attacks": [
            "noise",
            "noise-worst",
            "fgsm",
            "pgd",
            "pgd-margin",
            "pgd-strong",
            "pgd-strong-margin",
            "square",
        ],
    }
)


def judged(module: nn.Module, *epsilons: float) -> Evaluation:
    return evaluate(team(SPEC, module), suite=SUITE, epsilons=epsilons or None, seed=1)


def verdicts(result: Evaluation) -> dict[str, str]:
    return {check.name: check.verdict for check in result.checks}


def returns(result: Evaluation) -> dict[str, float]:
    return {row.attack.name: row.mean for row in result.attacks}


class TestPlantedTrigger:
    """Within ε = 0.1 there is a place where the policy says the opposite of what it sees."""

    def test_a_wide_one_is_found_by_gradients(self) -> None:
        result = judged(Trigger(width=0.05))
        assert result.worst[0].mean == -result.clean_return
        assert returns(result)["pgd-strong-margin"] == -result.clean_return
        assert result.failures == ()

    def test_a_narrow_one_is_found_although_the_gradient_at_zero_says_nothing_of_it(self) -> None:
        """In float32 exp(−(0.07 / 0.005)²) is zero: one step is blind, restarts and search are not."""
        result = judged(Trigger(width=0.005))
        found = returns(result)
        assert found["fgsm"] == result.clean_return
        assert result.worst[0].mean < 0.5 * result.clean_return

    def test_out_of_reach_it_does_no_harm(self) -> None:
        result = judged(Trigger(width=0.002), 0.04)
        assert set(returns(result).values()) == {result.clean_return}


class TestGradientMasking:
    def test_rounded_observations_are_flagged_and_beaten_without_gradients(self) -> None:
        result = judged(Quantized(), 1.2)
        found = returns(result)
        assert found["fgsm"] == found["pgd-margin"] == result.clean_return, "blind, as planned"
        assert found["square"] == -result.clean_return
        assert result.worst[0].mean == -result.clean_return
        said = verdicts(result)
        assert said["gradients"] == "fail"
        assert said["no gradients ≤ gradients"] == "fail"
        assert said["returns (greedy): no gradients ≤ gradients"] == "fail"
        assert any("Gradient masking" in check.text for check in result.failures)

    def test_saturated_logits_blind_the_divergence_not_the_margin(self) -> None:
        result = judged(Saturated(), 1.1)
        found = returns(result)
        assert found["pgd-margin"] == -result.clean_return
        assert verdicts(result)["saturation"] == "warn"
        assert result.worst[0].mean == -result.clean_return

    def test_a_randomised_policy_is_flagged(self) -> None:
        result = judged(Noisy(), 0.5)
        assert verdicts(result)["deterministic policy"] == "fail"


class TestProvablyRobust:
    def test_a_constant_policy_comes_out_perfectly_robust_and_nothing_fails(self) -> None:
        result = judged(Constant(), 0.5, 5.0)
        assert {row.returns for row in result.attacks} == {result.clean.returns}
        assert {row.success_rate for row in result.attacks} == {0.0}
        assert result.failures == ()
        flat = next(check for check in result.checks if check.name == "gradients")
        assert flat.verdict == "warn"
        assert "the policy does not look" in flat.text


class TestClosedForm:
    """Weighted errs iff 1.5 ε > 1: every adequate attack must see the edge between 0.66 and 0.68."""

    def test_the_edge_is_where_it_must_be(self) -> None:
        result = judged(Weighted(), 0.66, 0.68)
        below, above = result.worst
        assert [row.returns for row in result.attacks if row.attack == below.attack] == [result.clean.returns]
        assert above.mean == -result.clean_return
        white = ("fgsm", "pgd", "pgd-margin", "pgd-strong", "pgd-strong-margin")
        by_name = {(r.attack.name, r.attack.epsilon): r.mean for r in result.attacks}
        assert {by_name[name, 0.68] for name in white} == {-result.clean_return}
        assert by_name["square", 0.68] == -result.clean_return
        assert result.failures == ()

    def test_in_l2_the_edge_is_the_distance_to_the_boundary(self) -> None:
        """‖w‖₂ = √1.25: it errs iff ε > 1 / √1.25 = 0.894."""
        attack = make_attack("pgd-strong-margin", epsilon=1.0, norm="l2")
        result = evaluate(team(SPEC, Weighted()), attacks=[(attack, 0.88), (attack, 0.91)], episodes=8)
        below, above = result.attacks
        assert below.returns == result.clean.returns
        assert above.mean == -result.clean_return


class TestSoundPolicies:
    def test_an_honest_network_passes_every_check(self) -> None:
        result = judged(sign_reader(), 0.5, 1.1)
        assert set(verdicts(result).values()) == {"pass"}

    def test_masks_and_turns(self) -> None:
        result = evaluate(team(moves()), attacks=[("noise", 0.3), ("pgd-margin", 0.3)], episodes=12)
        assert [c for c in result.checks if c.verdict == "fail"] == []
        assert verdicts(result)["gradients"] in {"pass", "warn"}, "one legal action left has no margin"

    def test_without_attacks_there_is_nothing_to_check(self) -> None:
        assert evaluate(team(SPEC, sign_reader()), episodes=2).checks == ()


class TestPreflight:
    def examine(self, module: nn.Module, obs: Tensor) -> Health:
        victim = team(SPEC, module)
        sample = DecisionSample("agent_0", victim.policy("agent_0"), obs)
        return examine(sample, victim, PerturbationSet(epsilon=0.3), generator=generator())

    def test_numbers_by_hand(self) -> None:
        obs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0], [0.06, 0.0]])
        rounded = self.examine(Quantized(), obs)
        assert (rounded.zero_gradient, rounded.hidden, rounded.spread) == (1.0, 1.0, 0.0)
        sure = self.examine(Saturated(), obs)
        assert (sure.zero_gradient, sure.saturated) == (0.0, 1.0)
        assert self.examine(Noisy(), obs).spread > 0.01
        constant = self.examine(Constant(), obs)
        assert (constant.zero_gradient, constant.hidden) == (1.0, 0.0)

    @pytest.mark.parametrize(("log_std", "verdict"), [(-1.0, "pass"), (0.5, "warn")])
    def test_sigma_is_measured_in_half_ranges(self, log_std: float, verdict: str) -> None:
        from marl_aajr.rollout.environments import resolve

        spec = resolve("marl_aajr.envs.simple_spread_v3", {"continuous_actions": True})

        class Wide(nn.Module):
            def forward(self, obs: Tensor) -> Tensor:
                mean = obs[:, :5] * 1e-2
                return torch.cat([mean, torch.full_like(mean, log_std)], -1)

        victim = team(spec, Wide())
        sample = DecisionSample(
            "agent_0", victim.policy("agent_0"), torch.randn(20, 18, generator=generator())
        )
        health = examine(sample, victim, PerturbationSet(epsilon=0.1), generator=generator())
        assert health.sigma == pytest.approx(torch.tensor(log_std).exp().item())
        assert {c.name: c.verdict for c in report([health])}["σ inflation"] == verdict


def names(checks: list[Check], verdict: str) -> list[str]:
    return [check.name for check in checks if check.verdict == verdict]


class TestOrderOfObjectives:
    ROWS = 200

    def gains(self, **changed: float) -> dict[str, Tensor]:
        base = {
            "noise": 1.0,
            "one step": 2.0,
            "ten steps": 3.0,
            "twenty steps": 3.1,
            "strong": 3.2,
            "square": 3.0,
        }
        wiggle = 0.1 * torch.randn(self.ROWS, generator=generator(), dtype=torch.float64)
        return {name: value + wiggle for name, value in (base | changed).items()}

    def test_sound(self) -> None:
        larger = {name: 2 * gain for name, gain in self.gains().items()}
        checks = objective_checks({0.1: self.gains(), 0.2: larger})
        assert names(checks, "pass") == [check.name for check in checks]

    @pytest.mark.parametrize(
        ("changed", "name", "verdict"),
        [
            ({"noise": 2.5}, "noise ≤ one step", "fail"),
            ({"one step": 3.5}, "one step ≤ ten steps", "fail"),
            ({"twenty steps": 4.0}, "ten steps ≈ twenty steps", "warn"),
            ({"square": 4.0}, "no gradients ≤ gradients", "fail"),
        ],
    )
    def test_each_disorder_is_named(self, changed: dict[str, float], name: str, verdict: str) -> None:
        assert names(objective_checks({0.1: self.gains(**changed)}), verdict) == [name]

    def test_a_larger_ball_that_yields_less(self) -> None:
        smaller = {name: 0.5 * gain for name, gain in self.gains().items()}
        assert names(objective_checks({0.1: self.gains(), 0.2: smaller}), "fail") == [
            "larger ε, larger objective"
        ]

    def test_a_hair_ahead_is_not_ahead(self) -> None:
        """Random search on small observations comes close to the optimum: 2 % more is no masking."""
        assert names(objective_checks({0.1: self.gains(square=3.26)}), "fail") == []


def fields(returns: Iterable[float]) -> dict[str, Any]:
    """The fields of an `Outcome` with these returns, without an interval."""
    values = tuple(returns)
    return {"mean": sum(values) / len(values), "low": None, "high": None, "returns": values}


class TestOrderOfReturns:
    def rows(self, *found: tuple[str | Attack, float, float], gains: Sequence[float] = ()) -> ActionsResult:
        """(attack, ε, mean return), and what each gains on the objective: the same where nothing is said."""
        spread = torch.randn(40, generator=generator(), dtype=torch.float64).tolist()

        attacks = tuple(
            AttackOutcome(
                **fields(mean + x for x in spread),
                attack=AttackSpec.of(AttackEntry.model_validate(attack).at(epsilon)),
                epsilons={"agent_0": epsilon},
                success_rate=0.0,
                objective_gain=gain,
                kl=0.0,
            )
            for (attack, epsilon, mean), gain in zip(found, gains or [0.0] * len(found), strict=True)
        )
        return ActionsResult(actions="greedy", clean=Outcome(**fields(spread)), attacks=attacks)

    def checks(self, rows: ActionsResult) -> list[Check]:
        return return_checks(rows, [Categorical(2)])

    def test_sound(self) -> None:
        rows = self.rows(("noise", 0.1, -1.0), ("square", 0.1, -3.0), ("pgd", 0.1, -4.0), ("pgd", 0.2, -5.0))
        assert [check.verdict for check in self.checks(rows)] == ["pass"]

    @pytest.mark.parametrize("weak", ["noise", "fgsm"])
    def test_noise_or_a_single_step_that_hurts_more(self, weak: str) -> None:
        (check,) = self.checks(self.rows((weak, 0.1, -5.0), ("pgd", 0.1, -4.0)))
        assert (check.verdict, check.name) == ("fail", "returns (greedy): noise, one step ≤ many steps")
        assert f"{weak} lowers the return to -5" in check.text

    def test_a_single_step_alone_is_the_strongest(self) -> None:
        (check,) = self.checks(self.rows(("noise", 0.1, -5.0), ("fgsm", 0.1, -4.0)))
        assert check.verdict == "fail"
        assert " of fgsm, the strongest" in check.text

    @pytest.mark.parametrize("black", ["square", "transfer"])
    def test_an_attack_without_gradients_that_hurts_more(self, black: str) -> None:
        (check,) = self.checks(self.rows((black, 0.1, -5.0), ("pgd", 0.1, -4.0)))
        assert check.verdict == "fail"
        assert f"{black} lowers the return" in check.text

    @pytest.mark.parametrize(
        ("weak", "strong", "gain", "verdict"),
        [
            ("noise", "fgsm", 1.0, "fail"),
            ("noise", "fgsm", -1.0, "warn"),
            ("fgsm", "pgd-margin", 1.0, "fail"),
            ("fgsm", "pgd", 1.0, "warn"),
            (make_attack("pgd", epsilon=1.0), make_attack("pgd", epsilon=1.0, steps=20), 1.0, "fail"),
            ("pgd", "pgd-strong", 1.0, "fail"),
            ("pgd-margin", "pgd-strong-margin", 1.0, "fail"),
            ("pgd", "pgd-margin", 1.0, "pass"),
            ("pgd", "pgd-strong-margin", 1.0, "pass"),
        ],
    )
    def test_each_step_of_the_ladder(
        self, weak: str | Attack, strong: str | Attack, gain: float, verdict: str
    ) -> None:
        """Of two that maximise the same, the one that gains more may not hurt less; critic is the worst."""
        rows = self.rows(
            (weak, 0.1, -5.0), (strong, 0.1, -4.0), ("critic", 0.1, -6.0), gains=(0.0, gain, 0.0)
        )
        (check,) = self.checks(rows)
        assert check.verdict == verdict
        if verdict != "pass":
            assert check.name == "returns (greedy): noise ≤ one step ≤ many steps ≤ twice as many"
            assert "lowers the return to -5" in check.text

    def test_of_many_pairs_one_is_out_of_order_by_chance(self) -> None:
        """Differences of 0.05 ± 0.1 (t = 3 of 39 degrees): beyond doubt alone, not as one of thirty."""
        gaps = torch.linspace(-1, 1, 40, dtype=torch.float64)
        gaps = 0.05 + 0.1 * gaps / gaps.std()
        nothing, more = (Outcome(**fields(x.tolist())) for x in (0 * gaps, gaps))
        assert lower(nothing, more)
        assert not lower(nothing, more, among=30)

    def test_a_learned_adversary_that_hurts_less_than_a_myopic_one_is_undertrained(self) -> None:
        (check,) = self.checks(self.rows(("pgd", 0.1, -5.0), ("sa-rl", 0.1, -4.0), ("pa-ad", 0.1, -6.0)))
        assert (check.verdict, check.name) == ("warn", "returns (greedy): myopic ≤ learned")
        assert check.text.startswith("Undertrained: at ε = 0.1 sa-rl leaves a return of -4")
        assert "no evidence of robustness" in check.text

    @pytest.mark.parametrize(("noise", "learned"), [(-1.0, 1.0), (-3.0, -2.0)])
    def test_one_that_hurts_less_than_noise_or_nothing_fails(self, noise: float, learned: float) -> None:
        rows = self.rows(("noise", 0.1, noise), ("pgd", 0.1, -5.0), ("sa-rl", 0.1, learned))
        (check,) = self.checks(rows)
        assert (check.verdict, check.name) == ("fail", "returns (greedy): untrained ≤ learned")

    @pytest.mark.parametrize(("gain", "verdict"), [(1.0, "fail"), (-1.0, "warn")])
    def test_more_room_and_less_harm(self, gain: float, verdict: str) -> None:
        (check,) = self.checks(self.rows(("pgd", 0.1, -5.0), ("pgd", 0.2, -4.0), gains=(0.0, gain)))
        assert (check.verdict, check.name) == (verdict, "returns (greedy): larger ε, lower return")

    def test_within_the_paired_interval_nothing_is_said(self) -> None:
        """The episodes differ by 1, their differences by nothing but 0.001: pairing decides."""
        rows = self.rows(("square", 0.1, -4.0), ("pgd", 0.1, -4.0))
        assert [check.verdict for check in self.checks(rows)] == ["pass"]
