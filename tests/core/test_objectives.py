"""What the ascent climbs: the objectives in closed form, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical, DiagGaussian
from marl_aajr.core.end_of_ascent import end_of_ascent
from marl_aajr.core.objectives import (
    Clean,
    Margin,
    Surrogate,
    Value,
    make_objective,
)
from marl_aajr.core.policy import ModulePolicy
from tests.core.test_ascent import BALL, critic
from tests.networks import (
    linear_policy,
    observations,
    tanh_policy,
)


def test_surrogate_on_a_linear_gaussian_mean_is_known_in_closed_form() -> None:
    """g(δ) = Â ‖a − W(s + δ)‖² / 2σ²: its gradient at δ = 0 is −Â Wᵀ(a − Ws)."""
    weight = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)  # mean, log σ = 0
    policy = linear_policy(weight, DiagGaussian(1))
    obs = observations(5, 3)
    actions = observations(5, 1, seed=2)
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5, 3.0], dtype=torch.float64)
    clean = Clean(policy(obs), actions, advantages)
    trajectory = ascend(policy, obs, Surrogate(), BALL, steps=1, step_size=0.1, step="raw", clean=clean)
    residual = actions - obs @ weight[:1].T
    gradient = -advantages[:, None] * residual * weight[:1]
    torch.testing.assert_close(trajectory.gradient_norms[0], gradient.norm(dim=-1))
    torch.testing.assert_close(trajectory.directions[0], gradient / gradient.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(trajectory.deltas[1], (0.1 * gradient).clamp(-0.5, 0.5))


def test_margin_on_a_linear_policy_reaches_the_best_corner() -> None:
    """Two actions: g is linear in δ, its maximum over the L∞ ball is g(0) + ε ‖w_1 − w_0‖₁."""
    weight = observations(2, 4, seed=5)
    policy, obs = linear_policy(weight), observations(6, 4)
    trajectory = ascend(policy, obs, Margin(), BALL, steps=1, step_size=0.5)
    gap = (weight[0] - weight[1]).abs().sum() * 0.5
    torch.testing.assert_close(trajectory.values[1], trajectory.values[0] + gap)


def test_objectives_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="out of kl, surrogate, margin, value; got 'entropy'"):
        make_objective("entropy")
    with pytest.raises(ValueError, match="got a Gaussian one"):
        Margin().check(DiagGaussian(2))
    with pytest.raises(ValueError, match="expected a critic of the agent's own observation"):
        Value().bind(tanh_policy(Categorical(5)), Clean(observations(7, 5)))


def test_value_leads_downhill_on_the_critic() -> None:
    """V = −‖s‖²: ∇_δ (−V) = 2 (s + δ)."""
    policy, obs = tanh_policy(Categorical(5)), observations()
    clean = Clean(policy(obs), values=critic)
    trajectory = ascend(policy, obs, Value(), BALL, steps=2, step_size=0.1, step="raw", clean=clean)
    torch.testing.assert_close(trajectory.deltas[1], (0.2 * obs).clamp(-0.5, 0.5))
    torch.testing.assert_close(trajectory.directions[0], obs / obs.norm(dim=-1, keepdim=True))


def test_a_function_of_outputs_and_batch_is_an_objective() -> None:
    weight = observations(2, 3, seed=5)
    policy, obs = linear_policy(weight), observations(4, 3)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)

    def first_output(outputs: torch.Tensor, clean: Clean) -> torch.Tensor:
        assert clean.advantages is not None
        return clean.advantages * outputs[..., 0]

    clean = Clean(policy(obs), advantages=signs)
    trajectory = ascend(policy, obs, make_objective(first_output), BALL, steps=1, step_size=0.5, clean=clean)
    torch.testing.assert_close(trajectory.deltas[1], 0.5 * signs[:, None] * weight[0].sign())


def test_margin_never_counts_a_masked_action_as_runner_up() -> None:
    masked = torch.tensor([2.0, 1.0, torch.finfo(torch.float32).min])
    policy = ModulePolicy(lambda x: x + masked, Categorical(3))
    obs = torch.zeros(1, 3)
    assert Margin().bind(policy, Clean(policy(obs)))(obs).item() == -1.0


@pytest.mark.parametrize("logits", [[0.5], [0.5, -1e38, -1e38], [0.5, -torch.inf, -torch.inf]], ids=str)
def test_an_action_without_rivals_has_no_margin_to_climb(logits: list[float]) -> None:
    """One action, or one that a mask leaves."""
    kind = Categorical(len(logits))
    network = tanh_policy(kind)
    policy = ModulePolicy(lambda x: network(x) + torch.tensor(logits), kind)
    obs = observations()
    g = Margin().bind(policy, Clean(policy(obs)))
    assert not (g(obs + 0.3) - g(obs)).any()
    found = ascend(policy, obs, Margin(), BALL, steps=2, step_size=0.1)
    assert not found.values.any()
    assert not found.has_direction.any()


def test_a_network_with_one_output_is_left_alone() -> None:
    policy, obs = tanh_policy(Categorical(1), dtype=torch.float32), observations(dtype=torch.float32)
    assert not end_of_ascent(policy, obs, Margin(), BALL, steps=2, step_size=0.1, step="sign").delta.any()
