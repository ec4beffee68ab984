"""The evaluator judged: it must find what is planted, flag what hides, and praise what deserves it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import make_attack
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import Evaluation, Suite, evaluate
from marl_aajr.evaluation.preflight import DecisionSample, Health, examine, report
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
