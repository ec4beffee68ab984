"""Step sizes that the ascent chooses for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.core.ascent import STEPS, Step, ascend
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.objectives import (
    KL,
    Clean,
    Margin,
    make_objective,
)
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from tests.core.test_ascent import BALL
from tests.networks import (
    generator,
    linear_policy,
    observations,
    parameters,
    tanh_policy,
)


def sharp_policy() -> ModulePolicy:
    policy = tanh_policy(DiagGaussian(3))
    parameters(policy)[0].data.mul_(8)
    return policy


def overshoot(step_size: Any, **settings: Any) -> torch.Tensor:
    """Monotone fraction of ascents on a policy that is sharp at the scale of ε."""
    obs = observations(200)
    trajectory = ascend(
        sharp_policy(), obs, KL(), BALL, steps=6, step_size=step_size, generator=generator(), **settings
    )
    for delta in trajectory.deltas:
        assert BALL.contains(delta, obs).all()
    return trajectory.monotone.double().mean()


@pytest.mark.parametrize("step", STEPS)
def test_automatic_steps_never_lower_the_objective(step: Step) -> None:
    assert overshoot("auto", step=step) == 1
    assert overshoot(0.5, step=step) < 0.95  # a fixed step does


@pytest.mark.parametrize("step", STEPS)
def test_automatic_steps_reach_the_maximum_of_a_quadratic_in_two(step: Step) -> None:
    """g = −½ (x − 1)² in one dimension: a first step of the radius, then the secant knows the curvature."""

    def g(outputs: torch.Tensor, clean: Clean) -> torch.Tensor:
        return -0.5 * (outputs[..., 0] - 1).square()

    policy = linear_policy(torch.eye(1, dtype=torch.float64))
    obs = torch.tensor([[0.0], [0.2], [3.5]], dtype=torch.float64)
    threat = PerturbationSet(epsilon=0.6)
    trajectory = ascend(policy, obs, make_objective(g), threat, steps=2, step_size="auto", step=step)
    expected = torch.tensor([[0.6], [0.6], [-0.6]], dtype=torch.float64)  # as far as the set allows
    torch.testing.assert_close(trajectory.deltas[1], expected)
    wide = PerturbationSet(epsilon=1.5)
    trajectory = ascend(policy, obs[:1], make_objective(g), wide, steps=2, step_size="auto", step=step)
    assert [delta.item() for delta in trajectory.deltas] == pytest.approx([0.0, 1.5, 1.0])


def test_a_row_that_cannot_climb_stays_where_it_is() -> None:
    policy = linear_policy(torch.zeros(3, 6, dtype=torch.float64))
    trajectory = ascend(policy, observations(), Margin(), BALL, steps=2, step_size="auto")
    assert torch.equal(trajectory.deltas, torch.zeros_like(trajectory.deltas))
