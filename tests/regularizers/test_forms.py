"""The forms of the penalty with a gain bound, and the dual variable that enforces one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from marl_aajr.core.distributions import Categorical
from marl_aajr.regularizers import AAJR, State
from tests.networks import linear_policy, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE = AAJR(coefficient=1.0, sample_fraction=1.0, points="all", epsilon=0.3)
CONSTRAINT = replace(
    WHOLE, form="constraint", gain_bound=2.0, coefficient=0.5, dual_step_size=0.1, dual_bounds=(0.0, 0.9)
)
GAIN_3 = torch.tensor([[1.0], [2.0], [-2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("gain_bound", "expected"), [(0.0, 9.0), (1.0, 4.0), (3.5, 0.0)])
def test_the_hinge_pays_for_what_exceeds_the_bound(gain_bound: float, expected: float) -> None:
    """One input feature and gain 3: max(0, 3 − γ)²."""
    policy = linear_policy(GAIN_3)
    evaluation = evaluate(replace(WHOLE, form="hinge", gain_bound=gain_bound), sample_of(policy, features=1))
    assert evaluation.loss.item() == pytest.approx(expected)


def test_the_hinge_has_a_gradient_at_gain_zero() -> None:
    """√ has none: a row without direction must not turn the whole gradient into NaN."""
    squared = torch.zeros(3, requires_grad=True)
    AAJR(form="hinge", gain_bound=0.0).penalties(squared).sum().backward()
    assert squared.grad is not None
    assert torch.isfinite(squared.grad).all()


def test_the_constraint_is_weighted_by_the_dual_variable() -> None:
    """The dual starts at the coefficient; without a state it stays there."""
    sample = sample_of(linear_policy(GAIN_3), features=1)
    assert evaluate(CONSTRAINT, sample).loss.item() == pytest.approx(0.5 * 9)
    state: State = {"dual": torch.tensor(0.25, dtype=torch.float64)}
    evaluation = evaluate(CONSTRAINT, sample, state=state)
    assert evaluation.loss.item() == pytest.approx(0.25 * 9)
    assert evaluation.metrics["dual"].item() == 0.25
    assert state["dual"].item() == 0.25  # a minibatch never moves it


@pytest.mark.parametrize(
    ("mean_squared_gain", "expected"),
    [(5.0, 0.6), (3.0, 0.4), (4.0, 0.5), (100.0, 0.9), (-100.0, 0.0)],
    ids=["violated", "slack", "met", "upper bound", "lower bound"],
)
def test_an_update_moves_the_dual_by_the_violation(mean_squared_gain: float, expected: float) -> None:
    """λ ← clip(λ + α (E‖J u‖² − γ²)) with α = 0.1, γ = 2."""
    state: State = CONSTRAINT.initial_state()
    CONSTRAINT.after_update(state, {"penalty": mean_squared_gain})
    assert state["dual"].item() == pytest.approx(expected)


def test_the_metric_that_the_dual_reads_is_the_constrained_quantity() -> None:
    evaluation = evaluate(CONSTRAINT, sample_of(linear_policy(GAIN_3), features=1))
    assert evaluation.metrics["penalty"].item() == pytest.approx(9.0)


def test_the_dual_drives_the_gain_to_its_bound() -> None:
    """Gradient descent on λ ‖w‖² − 2 Σw (which alone grows w) settles where ‖w‖² = γ²."""
    policy = linear_policy(0.1 * GAIN_3)
    regularizer = replace(CONSTRAINT, dual_step_size=0.02, dual_bounds=(0.0, 10.0), steps=1)
    (weight,) = parameters(policy)
    state: State = regularizer.initial_state()
    for _ in range(30):
        evaluation = evaluate(regularizer, sample_of(policy, features=1), state=state)
        (gradient,) = gradients(evaluation, [weight])
        weight.data -= 0.3 * (gradient - 2 * torch.ones_like(weight))
        regularizer.after_update(state, {"penalty": evaluation.metrics["penalty"].item()})
    assert weight.square().sum().item() == pytest.approx(4.0, rel=0.02)


def test_a_constraint_is_active_even_from_dual_zero() -> None:
    assert replace(CONSTRAINT, coefficient=0.0).active(0)
    assert not replace(WHOLE, coefficient=0.0).active(0)


def test_a_ramp_raises_the_weights_and_leaves_the_dual_alone() -> None:
    ramped = replace(WHOLE, adversarial_weight=0.5).ramped(10, 20)
    assert ramped.coefficient == ((0.0, 0.0), (10, 0.0), (20, 1.0))
    assert ramped.adversarial_weight == ((0.0, 0.0), (10, 0.0), (20, 0.5))
    assert WHOLE.ramped(0, 20).coefficient == ((0.0, 0.0), (20, 1.0))
    ramped = replace(CONSTRAINT, adversarial_weight=0.5).ramped(10, 20)
    assert ramped.coefficient == 0.5
    assert ramped.adversarial_weight == ((0.0, 0.0), (10, 0.0), (20, 0.5))


def test_only_a_constraint_has_a_state() -> None:
    assert WHOLE.initial_state() == {}
    assert set(CONSTRAINT.initial_state()) == {"dual"}
    sample = sample_of(tanh_policy(Categorical(5)))
    assert "dual" not in evaluate(WHOLE, sample).metrics
