"""SA-PPO's and ERNIE's penalties: closed forms, what is detached, and the sources' own adversaries."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.ascent import ascend
from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import ERNIE, SmoothPolicy
from marl_aajr.regularizers.smoothness import ActionDifference
from tests.networks import DISTRIBUTIONS, generator, linear_policy, observations, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"coefficient": 1.0, "sample_fraction": 1.0, "epsilon": 0.3}
PLAIN = SmoothPolicy(langevin=False, **WHOLE)


def gaussian(weight: float, log_std: float) -> ModulePolicy:
    """μ = w s, log σ constant."""
    rows = torch.tensor([[weight], [0.0]], dtype=torch.float64)
    return linear_policy(rows, DiagGaussian(1), torch.tensor([0.0, log_std], dtype=torch.float64))


@pytest.mark.parametrize("langevin", [True, False])
def test_smooth_policy_on_a_gaussian_is_the_scaled_move_of_its_mean(langevin: bool) -> None:
    """(w ε / σ)² at the worst perturbation, whose size is ε."""
    policy = gaussian(2.0, 0.5)
    evaluation = evaluate(SmoothPolicy(langevin=langevin, **WHOLE), sample_of(policy, features=1))
    assert evaluation.loss.item() == pytest.approx((2.0 * 0.3) ** 2 / torch.tensor(1.0).exp().item())


def test_smooth_policy_cannot_be_met_by_more_noise() -> None:
    """The gradient with respect to log σ is zero: the difference must shrink in the mean."""
    policy = gaussian(2.0, 0.5)
    weight, bias = gradients(evaluate(PLAIN, sample_of(policy, features=1)), parameters(policy))
    assert weight[0].abs() > 0
    assert weight[1] == 0
    assert bias[1] == 0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_smooth_policy_is_the_difference_at_the_maximiser_with_the_clean_side_detached(
    distribution: ActionDistribution,
) -> None:
    policy = tanh_policy(distribution)
    sample = sample_of(policy)
    trajectory = ascend(
        policy,
        sample.obs,
        ActionDifference(),
        PLAIN.perturbations(0),
        steps=3,
        step_size=0.15,
        generator=generator(),
        clean=sample.clean,
    )
    evaluation = evaluate(PLAIN, sample)
    outputs, clean = policy(sample.obs + trajectory.deltas[-1]), sample.outputs.detach()
    if isinstance(distribution, DiagGaussian):
        (mean, log_std), (moved, _) = distribution.split(clean), distribution.split(outputs)
        expected = ((moved - mean) / log_std.exp()).square().sum(-1).mean()
    else:
        expected = distribution.kl(clean, outputs).mean()
    torch.testing.assert_close(evaluation.loss, expected)
    found = gradients(evaluation, parameters(policy))
    for ours, theirs in zip(found, torch.autograd.grad(expected, parameters(policy)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_its_adversary_climbs_the_gradient_of_what_is_penalised(distribution: ActionDistribution) -> None:
    """In closed form by the outputs; here against autograd all the way."""
    policy = tanh_policy(distribution)
    g = ActionDifference().bind(policy, sample_of(policy).clean)
    obs, delta = observations(), (0.1 * observations(seed=5)).requires_grad_(True)
    value = g(obs + delta)
    (expected,) = torch.autograd.grad(value.sum(), delta)
    found_value, found = value_and_gradient(g, obs, delta)
    torch.testing.assert_close(found_value, value.detach())
    torch.testing.assert_close(found, expected)


def test_langevin_is_the_adversary_of_the_source() -> None:
    """SGLD as SA-PPO writes it, on the mean of 64 rows: a corner, then noise, sign and clamp."""
    policy, rows, steps, epsilon = tanh_policy(DiagGaussian(3)), 64, 4, 0.3
    sample = sample_of(policy, rows=rows)
    size, noise = epsilon / steps, generator()
    regularizer = SmoothPolicy(steps=steps, step_size=1 / steps, **WHOLE)
    evaluation = evaluate(regularizer, sample)

    def normal() -> Tensor:
        return torch.empty_like(sample.obs).normal_(generator=noise)

    clean = sample.outputs.detach()
    mean, std = clean[:, :3], clean[:, 3:].exp()
    state = sample.obs + size * normal().sign()
    for t in range(steps):
        state = state.detach().requires_grad_(True)
        loss = ((policy(state)[:, :3] - mean) / std).square().sum(-1).mean()
        (gradient,) = torch.autograd.grad(loss, state)
        noisy = gradient + sqrt(2 * size * 1e-5) / (t + 2) * normal()
        state = (state + size * noisy.sign()).clamp(sample.obs - epsilon, sample.obs + epsilon)
    expected = ((policy(state)[:, :3] - mean) / std).square().sum(-1).mean()
    torch.testing.assert_close(evaluation.loss, expected)


def test_a_start_of_ones_own_replaces_the_corner() -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    corner, uniform = (
        evaluate(SmoothPolicy(start=start, steps=1, **WHOLE), sample).metrics["objective_gain"]
        for start in (None, "random")
    )
    assert corner != uniform


def test_langevin_noise_needs_a_step_size() -> None:
    with pytest.raises(ValueError, match="expected a fixed step_size with langevin=True"):
        SmoothPolicy(step_size="auto")
    assert evaluate(replace(PLAIN, step_size="auto"), sample_of(tanh_policy(Categorical(5)))).loss > 0


def test_ernie_on_a_linear_policy_is_the_distance_of_its_outputs() -> None:
    """‖w‖ ε, unsquared; with a step of 50 ε still: the perturbation is projected."""
    policy = linear_policy(torch.tensor([[1.0], [2.0], [-2.0]], dtype=torch.float64))
    for step_size in (0.5, 50.0):
        evaluation = evaluate(ERNIE(step_size=step_size, **WHOLE), sample_of(policy, features=1))
        assert evaluation.loss.item() == pytest.approx(0.9)


@pytest.mark.parametrize(("output", "bound"), [("probs", sqrt(2)), ("logits", 10.0)])
def test_ernie_measures_the_output_it_is_told_to(output: Any, bound: float) -> None:
    policy = linear_policy(100 * torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    loss = evaluate(ERNIE(output=output, **WHOLE), sample_of(policy, features=1)).loss.item()
    assert (loss <= bound) == (output == "probs")


def test_the_gradient_of_ernie_flows_through_both_outputs() -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    both = gradients(evaluate(ERNIE(**WHOLE), sample), parameters(policy))
    detached = replace(sample_of(policy), outputs=sample.outputs.detach())
    one = gradients(evaluate(ERNIE(**WHOLE), detached), parameters(policy))
    assert not torch.allclose(both[0], one[0])
    # A bias of the last layer moves both outputs alike: their distance does not change.
    torch.testing.assert_close(both[-1], torch.zeros_like(both[-1]))
    assert one[-1].abs().sum() > 0.01


def test_a_policy_that_does_not_move_costs_nothing_and_has_a_finite_gradient() -> None:
    policy = linear_policy(torch.zeros(3, 6, dtype=torch.float64))
    for regularizer in (PLAIN, ERNIE(**WHOLE)):
        evaluation = evaluate(regularizer, sample_of(policy))
        assert evaluation.loss.item() == 0
        assert all(torch.isfinite(g).all() for g in gradients(evaluation, parameters(policy)))


def test_undefined_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected output out of logits, probs, mean; got 'fisher'"):
        ERNIE(output="fisher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for a Gaussian policy, got 'probs'"):
        ERNIE(output="probs").check(DiagGaussian(2))


def test_masked_actions_stay_out_of_the_distance() -> None:
    forbidden = torch.tensor([0.0, 0.0, torch.finfo(torch.float64).min], dtype=torch.float64)
    open_policy = linear_policy(torch.tensor([[1.0], [2.0], [7.0]], dtype=torch.float64))
    policy = ModulePolicy(lambda x: open_policy(x) + forbidden, Categorical(3))
    obs = observations(5, 1)
    sample = replace(sample_of(open_policy, rows=5, features=1), policy=policy, outputs=policy(obs))
    assert evaluate(ERNIE(**WHOLE), sample).loss.item() == pytest.approx(0.3 * sqrt(5))
