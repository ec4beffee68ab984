"""AAJR: the loss it adds, its gradient, and what must not contribute to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.ascent import ascend
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.jacobian import BACKENDS, Backend, jvp
from marl_aajr.core.objectives import KL, Clean, Margin
from marl_aajr.core.output_maps import squared_gain
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, Sample
from marl_aajr.regularizers.sample import Earlier
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    tanh_policy,
)
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE = AAJR(coefficient=1.0, sample_fraction=1.0, points="all", epsilon=0.3)


def test_penalty_of_a_linear_policy_is_its_gain_along_the_only_direction() -> None:
    """One input feature: u = ±1, so ‖J u‖² = ‖w‖² wherever the adversary stands."""
    policy = linear_policy(torch.tensor([[1.0], [2.0], [-2.0]], dtype=torch.float64))
    evaluation = evaluate(replace(WHOLE, coefficient=0.5), sample_of(policy, features=1))
    assert evaluation.loss.item() == pytest.approx(4.5)
    assert evaluation.metrics["penalty"].item() == pytest.approx(9.0)
    assert evaluation.metrics["gain_mean"].item() == pytest.approx(3.0)
    assert evaluation.metrics["gain_max"].item() == pytest.approx(3.0)


def test_the_strictness_witness_pays_for_the_attacked_direction_only() -> None:
    """F(s) = diag(a, γ) s with an objective that reads the second output: the gain is γ, not a."""
    a, gamma = 50.0, 0.5
    policy = linear_policy(torch.diag(torch.tensor([a, gamma], dtype=torch.float64)), DiagGaussian(1))
    # KL of this Gaussian at σ = e^{γ s₂}: mask the first feature to let the adversary see s₂ alone.
    evaluation = evaluate(replace(WHOLE, mask=(False, True)), sample_of(policy, features=2))
    assert evaluation.metrics["gain_max"].item() == pytest.approx(gamma)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize("output", ["logits", "fisher"])
@pytest.mark.parametrize("gain_bound", [None, 0.3])
def test_penalty_gradient_equals_finite_differences(
    distribution: ActionDistribution, output: Any, gain_bound: float | None
) -> None:
    """With δ and u frozen (stop-gradient) and the metric frozen (detached); ‖J u‖² and the hinge."""
    policy = tanh_policy(distribution)
    sample = sample_of(policy)
    trajectory = ascend(
        policy, sample.obs, KL(), WHOLE.perturbations(0), steps=3, step_size=0.15, generator=generator()
    )
    points = (sample.obs + trajectory.deltas[:-1]).flatten(0, 1)
    directions = trajectory.directions.flatten(0, 1)
    metric_at = policy(points).detach()

    def frozen() -> Tensor:
        _, tangent = jvp(policy, points, directions)
        squared = squared_gain(output, distribution, metric_at, tangent)
        return squared.mean() if gain_bound is None else (squared.sqrt() - gain_bound).relu().square().mean()

    form: Any = "squared" if gain_bound is None else "hinge"
    evaluation = evaluate(replace(WHOLE, output=output, form=form, gain_bound=gain_bound), sample)
    torch.testing.assert_close(evaluation.loss, frozen())
    h = 1e-6
    for parameter, gradient in zip(
        parameters(policy), gradients(evaluation, parameters(policy)), strict=True
    ):
        for index in range(0, parameter.numel(), 11):
            flat = parameter.data.view(-1)
            value = flat[index].item()
            flat[index] = value + h
            ahead = frozen().item()
            flat[index] = value - h
            behind = frozen().item()
            flat[index] = value
            expected = (ahead - behind) / (2 * h)
            assert gradient.reshape(-1)[index].item() == pytest.approx(expected, abs=1e-7, rel=1e-5)


def test_rows_without_direction_contribute_zero_and_stay_in_the_mean() -> None:
    def network(x: Tensor) -> Tensor:
        alive = (x[:, :1] > 0).to(x)
        return torch.cat([alive * x[:, 1:2], -alive * x[:, 1:2]], -1)

    policy = ModulePolicy(network, Categorical(2))
    obs = torch.tensor([[1.0, 0.3], [-1.0, 0.3]], dtype=torch.float64)
    evaluation = evaluate(WHOLE, Sample(policy, obs, policy(obs)))
    assert evaluation.metrics["penalty"].item() == pytest.approx(1.0)  # (2 + 0) / 2
    assert evaluation.metrics["no_direction_fraction"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_give_the_same_loss_and_gradient(backend: Backend) -> None:
    policy = tanh_policy(Categorical(5))
    mine = evaluate(replace(WHOLE, backend=backend), sample_of(policy))
    reference = evaluate(replace(WHOLE, backend="forward"), sample_of(policy))
    torch.testing.assert_close(mine.loss, reference.loss, atol=1e-8, rtol=1e-7)
    for a, b in zip(*(gradients(e, parameters(policy)) for e in (mine, reference)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_the_secant_of_a_linear_policy_is_its_gain_along_the_step() -> None:
    """f = W s: ‖W d_t‖² / ‖d_t‖², without a derivative of the network; at the corner nothing moves: 0."""
    policy = linear_policy(observations(3, 2, seed=4))
    weight = parameters(policy)[0]
    sample = sample_of(policy, features=2)
    regularizer = replace(WHOLE, secant=True, steps=3, step_size=2.0)
    evaluation = evaluate(regularizer, sample)
    trajectory = ascend(
        policy,
        sample.obs,
        KL(),
        regularizer.perturbations(0),
        steps=3,
        step_size=0.6,
        generator=generator(),
        clean=sample.clean,
    )
    displacements = trajectory.deltas[1:] - trajectory.deltas[:-1]
    lengths = displacements.square().sum(-1)
    assert (lengths[1:] == 0).all()  # a step of 2 ε reaches a corner at once
    expected = (displacements @ weight.T).square().sum(-1)[0] / lengths[0]
    torch.testing.assert_close(evaluation.loss, (expected / 3).mean())
    assert all(torch.isfinite(g).all() for g in gradients(evaluation, parameters(policy)))


def test_the_secant_approaches_the_penalty_as_the_steps_shrink() -> None:
    sample = sample_of(tanh_policy(DiagGaussian(3)))
    small: dict[str, Any] = {"step_size": 1e-5, "step": "normalized", "output": "fisher", "norm": "l2"}
    tangent, chord = (evaluate(replace(WHOLE, secant=s, **small), sample).loss for s in (False, True))
    torch.testing.assert_close(tangent, chord, atol=0, rtol=1e-4)


def test_the_step_size_follows_its_schedule_or_the_curvature() -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    scheduled = replace(WHOLE, step_size=[[0, 0.1], [100, 0.7]])  # type: ignore[arg-type]
    assert [scheduled.step_size_at(t) for t in (0, 100)] == pytest.approx([0.03, 0.21])
    assert replace(scheduled, step="raw").step_size_at(0) == 0.1
    fixed = replace(WHOLE, step_size=0.7)
    torch.testing.assert_close(evaluate(scheduled, sample, timestep=100).loss, evaluate(fixed, sample).loss)
    automatic = evaluate(replace(WHOLE, step_size="auto", step="raw", steps=5), sample)
    assert automatic.metrics["monotone_fraction"] == 1


CLIMB = [(7, True)] * 3 + [(7, False)]
"""Rows and whether a graph was built: three steps and the value at δ_K."""


def test_no_pass_of_the_network_is_wasted() -> None:
    """K passes of the ascent, one of its value at δ_K, one for the K points; none at clean observations."""
    seen: list[tuple[int, bool]] = []

    class Counting(ModulePolicy):
        def __call__(self, obs: Tensor) -> Tensor:
            seen.append((len(obs), torch.is_grad_enabled()))
            return super().__call__(obs)

    inner = tanh_policy(Categorical(5))
    sample = replace(sample_of(inner), policy=Counting(inner, inner.distribution))
    regularizer = replace(WHOLE, backend="forward")
    evaluate(regularizer, sample)
    assert seen == [*CLIMB, (21, True)]
    seen.clear()
    evaluate(replace(regularizer, adversarial_weight=0.5), sample)
    assert seen == [*CLIMB, (21, True), (7, True)]
    seen.clear()
    evaluate(replace(regularizer, adversarial_weight=0.5, coefficient=0.0), sample)
    assert seen == [*CLIMB, (21, False), (7, True)]  # the penalty for the metrics alone


def test_one_step_still_tells_how_far_it_climbed() -> None:
    metrics = evaluate(replace(WHOLE, steps=1), sample_of(tanh_policy(Categorical(5)))).metrics
    assert metrics["objective_gain"] > 0
    assert metrics["monotone_fraction"] == 1


def test_the_critic_and_functions_of_ones_own_are_objectives() -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    assert evaluate(replace(WHOLE, objective="value"), sample).loss > 0

    def first(outputs: Tensor, clean: Clean) -> Tensor:
        return outputs[..., 0] - clean.outputs[..., 0]

    custom = evaluate(replace(WHOLE, objective=first), sample)
    assert custom.metrics["objective_gain"] > 0


def test_a_critic_that_is_bound_to_its_rows_follows_the_share_that_is_drawn() -> None:
    """A recurrent critic reads its rows' own columns: handed other rows it would fail, or worse."""

    class Bound:
        def __init__(self, hidden: Tensor) -> None:
            self.hidden = hidden

        def __call__(self, obs: Tensor) -> Tensor:
            return (self.hidden * obs).sum(-1)

        def select(self, index: Tensor) -> Bound:
            return Bound(self.hidden[index])

    sample = replace(sample_of(tanh_policy(Categorical(5)), rows=8), values=Bound(observations(8, seed=3)))
    index = torch.tensor([5, 2])
    values = sample.select(index).values
    assert values is not None
    torch.testing.assert_close(
        values(sample.obs[index]), (observations(8, seed=3) * sample.obs).sum(-1)[index]
    )
    half = replace(WHOLE, objective="value", sample_fraction=0.5)
    assert evaluate(half, sample).metrics["objective_gain"] > 0


def test_sample_fraction_regularises_that_share_of_the_rows() -> None:
    seen: list[int] = []

    class Counting(ModulePolicy):
        def __call__(self, obs: Tensor) -> Tensor:
            seen.append(len(obs))
            return super().__call__(obs)

    inner = tanh_policy(Categorical(5))
    policy = Counting(inner, inner.distribution)
    sample = replace(sample_of(inner, rows=40), policy=policy)
    evaluate(replace(WHOLE, sample_fraction=0.25, steps=2, backend="forward"), sample)
    assert set(seen) == {10, 20}  # ten rows; the two points of the trajectory in one batch


def test_schedules_decide_when_it_is_active() -> None:
    regularizer = AAJR(coefficient=[[0, 0.0], [100, 0.0], [200, 1.0]])  # type: ignore[arg-type]
    assert [regularizer.active(t) for t in (0, 100, 101)] == [False, False, True]
    assert not AAJR(coefficient=0, adversarial_weight=0).active(0)
    assert AAJR(coefficient=0, adversarial_weight=0.5).active(0)
    policy = tanh_policy(Categorical(5))
    half, full = (
        evaluate(replace(regularizer, sample_fraction=1.0), sample_of(policy), timestep=t) for t in (150, 200)
    )
    torch.testing.assert_close(2 * half.loss, full.loss)


def test_a_non_finite_output_is_counted_and_then_named() -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    parameters(policy)[0].data[0, 0] = float("nan")
    assert evaluate(WHOLE, sample).metrics["nonfinite"].item() > 0
    with pytest.raises(NonFiniteError, match="the inner objective at step 0: 7 NaN"):
        WHOLE.evaluate(sample, timestep=0, generator=generator(), check=True)


def test_without_weight_it_measures_what_it_would_have_penalised() -> None:
    """The learner adds a zero that has no graph."""
    assert not replace(WHOLE, coefficient=0).active(0)
    measured = replace(WHOLE, coefficient=0, measured=True)
    assert measured.active(0)
    sample = sample_of(tanh_policy(Categorical(5)))
    term, penalised = evaluate(measured, sample), evaluate(WHOLE, sample)
    assert term.loss.item() == 0.0
    assert not term.loss.requires_grad
    assert term.metrics == penalised.metrics


def test_directions_of_an_epoch_are_those_of_a_fresh_ascent_on_the_policy_that_began_it() -> None:
    """δ_t and u_t are the earlier policy's, J is the present one's; of a choice of rows, too."""
    policy, before = tanh_policy(Categorical(4)), tanh_policy(Categorical(4), seed=5)
    sample = sample_of(policy)
    sample = replace(sample, earlier=Earlier(before, sample.obs))
    regularizer = replace(WHOLE, directions="epoch", objective="margin")
    for part in (sample, sample.select(torch.tensor([4, 1, 5]))):
        margin = Margin()
        how: dict[str, Any] = {"steps": 3, "step_size": 0.15, "generator": generator()}
        path = ascend(before, part.obs, margin, WHOLE.perturbations(0), **how)
        points = (part.obs + path.deltas[:-1]).flatten(0, 1)
        _, tangent = jvp(policy, points, path.directions.flatten(0, 1))
        found = evaluate(regularizer, part)
        torch.testing.assert_close(found.loss, tangent.square().sum(-1).mean())
        fresh = ascend(policy, part.obs, margin, WHOLE.perturbations(0), **how).directions[0]
        cosine = (fresh * path.directions[0]).sum(-1).mean()
        torch.testing.assert_close(found.metrics["direction_cosine"], cosine)
    itself = replace(sample, earlier=Earlier(policy, sample.obs))
    same = evaluate(replace(WHOLE, objective="margin"), sample)
    assert evaluate(regularizer, itself).loss.item() == same.loss.item()


def test_who_does_not_tell_epochs_apart_is_told_so() -> None:
    regularizer = replace(WHOLE, directions="epoch")
    with pytest.raises(ValueError, match="expected a learner that tells epochs apart"):
        evaluate(regularizer, sample_of(tanh_policy(Categorical(4))))
    with pytest.raises(ValueError, match="expected a module and learner with epochs for directions='epoch'"):
        regularizer.check(Categorical(4), offers={"critic"})
