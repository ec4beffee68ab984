"""The inner maximisation: closed forms, stop-gradient, and what it leaves untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from marl_aajr.core.ascent import STEPS, Step, ascend
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.objectives import (
    KL,
    OBJECTIVES,
    Clean,
    Margin,
    Objective,
    Surrogate,
    make_objective,
)
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    random_actions,
    tanh_policy,
)

BALL = PerturbationSet(epsilon=0.5)


def critic(obs: torch.Tensor) -> torch.Tensor:
    """V(s) = −‖s‖², smooth and known."""
    return -obs.square().sum(-1)


def test_trajectory_has_the_documented_shapes() -> None:
    trajectory = ascend(
        tanh_policy(Categorical(5)),
        observations(),
        KL(),
        BALL,
        steps=3,
        step_size=0.2,
        generator=generator(),
    )
    assert trajectory.deltas.shape == (4, 7, 6)
    assert trajectory.directions.shape == (3, 7, 6)
    assert trajectory.values.shape == (4, 7)
    assert trajectory.gradient_norms.shape == trajectory.has_direction.shape == (3, 7)


COMBINATIONS = [
    (distribution, objective, STEPS[(i + j + k) % len(STEPS)], norm)
    for i, distribution in enumerate(DISTRIBUTIONS)
    for j, objective in enumerate(OBJECTIVES)
    for k, norm in enumerate(("linf", "l2"))
    if not (objective == "margin" and isinstance(distribution, DiagGaussian))
]
"""Every objective of every distribution in both norms; every step with each of these."""


@pytest.mark.parametrize(("distribution", "objective", "step", "norm"), COMBINATIONS, ids=str)
def test_every_combination_stays_inside_and_climbs(
    distribution: ActionDistribution, objective: str, step: Step, norm: Any
) -> None:
    policy, obs = tanh_policy(distribution), observations()
    threat = PerturbationSet(epsilon=0.3, norm=norm, mask=(True,) * 5 + (False,))
    outputs = policy(obs)
    clean = Clean(outputs, random_actions(distribution, outputs), observations(7, 1, seed=4)[:, 0], critic)
    trajectory = ascend(
        policy,
        obs,
        make_objective(objective),
        threat,
        steps=8,
        step_size=0.06,
        step=step,
        clean=clean,
        generator=generator(),
    )
    for delta in trajectory.deltas:
        assert threat.contains(delta, obs).all()
    assert (trajectory.values[-1] >= trajectory.values[0] - 1e-3).all()
    if (step, norm) != ("sign", "l2"):  # sign steps are steepest in L∞; projected on an L2 ball they may fall
        assert trajectory.monotone.double().mean() > 0.8
    norms = trajectory.directions.norm(dim=-1)
    torch.testing.assert_close(
        norms[trajectory.has_direction], torch.ones_like(norms)[trajectory.has_direction]
    )


def test_nothing_flows_back_and_parameters_stay_untouched() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations().requires_grad_(True)
    trajectory = ascend(policy, obs, KL(), BALL, steps=3, step_size=0.2, generator=generator())
    for name in ("deltas", "directions", "gradient_norms", "values"):
        assert not getattr(trajectory, name).requires_grad, name
    assert all(parameter.grad is None for parameter in parameters(policy))
    assert obs.grad is None


def test_existing_parameter_gradients_survive() -> None:
    policy = tanh_policy(Categorical(5))
    policy(observations()).sum().backward()
    before = [p.grad.clone() for p in parameters(policy) if p.grad is not None]
    ascend(policy, observations(), KL(), BALL, steps=2, step_size=0.2, generator=generator())
    assert all(
        torch.equal(a, p.grad) for a, p in zip(before, parameters(policy), strict=True) if p.grad is not None
    )


def test_it_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        trajectory = ascend(
            tanh_policy(Categorical(5)),
            observations(),
            KL(),
            BALL,
            steps=2,
            step_size=0.2,
            generator=generator(),
        )
    assert trajectory.has_direction.all()


def test_a_row_without_gradient_has_no_direction() -> None:
    """A constant row's gradient is zero: normalising it would invent a direction."""

    def network(x: torch.Tensor) -> torch.Tensor:
        alive = (x[:, :1] > 0).to(x)
        return torch.cat([alive * x[:, 1:2], -alive * x[:, 1:2]], -1)

    obs = torch.tensor([[1.0, 0.3], [-1.0, 0.3]])
    trajectory = ascend(
        ModulePolicy(network, Categorical(2)),
        obs,
        KL(),
        PerturbationSet(epsilon=0.1),
        steps=2,
        step_size=0.05,
        generator=generator(),
    )
    assert trajectory.has_direction.tolist() == [[True, False]] * 2
    assert (trajectory.directions[:, 1] == 0).all()


def test_a_constant_policy_has_no_direction_at_all() -> None:
    policy = linear_policy(torch.zeros(3, 4))
    trajectory = ascend(
        policy,
        observations(3, 4, dtype=torch.float32),
        KL(),
        BALL,
        steps=2,
        step_size=0.1,
        generator=generator(),
    )
    assert not trajectory.has_direction.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_has_its_direction_whatever_the_rows_beside_it(dtype: torch.dtype) -> None:
    """Its gradient may be a billionth of a neighbour's."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)

    def network(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight) * torch.where(x[:, :1] > 1, 1e3, 1e-9)

    obs = torch.tensor([[2.0, 0.5], [0.5, 2.0]], dtype=dtype)
    settings: dict[str, Any] = {"steps": 1, "step_size": 0.1}
    policy = ModulePolicy(network, Categorical(2))
    together = ascend(policy, obs, Margin(), BALL, **settings)
    assert together.has_direction.all()
    for row in range(2):
        alone = ascend(policy, obs[row : row + 1], Margin(), BALL, **settings)
        torch.testing.assert_close(together.directions[:, row : row + 1], alone.directions)


@pytest.mark.parametrize("rows", [1, 7])
def test_rounding_noise_at_the_observation_itself_is_no_direction(rows: int) -> None:
    """KL is flat there: what its gradient is depends on the processor and on the rows beside it."""
    policy = tanh_policy(Categorical(5), dtype=torch.float32)
    obs = observations(dtype=torch.float32)[:rows]
    delta = BALL.sample(obs, generator=generator())
    delta[0] = torch.nextafter(torch.zeros(6), torch.ones(6))
    outputs = policy(obs).detach()
    last_bit = torch.nextafter(outputs, outputs + torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
    elsewhere = Clean(last_bit)  # what another processor makes of the same observations
    trajectory = ascend(policy, obs, KL(), BALL, steps=2, step_size=0.1, start=delta, clean=elsewhere)
    assert not trajectory.has_direction[:, 0].any()
    assert (trajectory.deltas[:, 0] == delta[0]).all()
    assert trajectory.has_direction[:, 1:].all()


@pytest.mark.parametrize(("where", "message"), [(0, "at step 0"), (2, "at step 2")])
def test_a_non_finite_number_names_its_step(where: int, message: str) -> None:
    calls = iter(range(100))

    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The first call computes the clean outputs.
            return x * (float("nan") if next(calls) == where + 1 else 1.0)

    policy = ModulePolicy(Breaks(), Categorical(6))
    with pytest.raises(NonFiniteError, match=message):
        ascend(policy, observations(), KL(), BALL, steps=3, step_size=0.1, generator=generator())


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (KL(), {"start": "zero"}, "its gradient vanishes at δ = 0"),
        (KL(), {"generator": None}, "expected a torch.Generator"),
        (KL(), {"steps": 0}, "expected an integer steps ≥ 1, got 0"),
        (KL(), {"step": "big"}, "expected step out of sign, normalized, raw"),
        (KL(), {"start": "corner"}, "expected start out of zero, random; got 'corner'"),
        (Surrogate(), {}, "expected actions and advantages"),
    ],
)
def test_senseless_settings_are_refused(objective: Objective, settings: dict[str, Any], message: str) -> None:
    arguments = {"steps": 2, "step_size": 0.1, "generator": generator(), **settings}
    with pytest.raises(ValueError, match=message):
        ascend(tanh_policy(Categorical(5)), observations(), objective, BALL, **arguments)


@pytest.mark.parametrize("final_gradient", [False, True])
def test_it_ends_with_a_value_or_with_a_gradient_too_for_one_pass_each(final_gradient: bool) -> None:
    inner = tanh_policy(Categorical(5))
    seen: list[int] = []

    def counting(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        output: torch.Tensor = inner.module(x)
        return output

    obs = observations()
    arguments: dict[str, Any] = {
        "steps": 3,
        "step_size": 0.2,
        "generator": generator(),
        "clean": Clean(inner(obs)),
    }
    trajectory = ascend(
        ModulePolicy(counting, Categorical(5)), obs, KL(), BALL, final_gradient=final_gradient, **arguments
    )
    assert len(seen) == len(trajectory.deltas) == len(trajectory.values) == 4
    assert len(trajectory.directions) == 3
    assert (trajectory.final_gradient is not None) == final_gradient
    full = ascend(inner, obs, KL(), BALL, **{**arguments, "generator": generator()})
    assert torch.equal(trajectory.directions, full.directions)
    assert torch.equal(trajectory.deltas, full.deltas)


def test_the_final_gradient_is_the_gradient_at_the_final_point() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    trajectory = ascend(
        policy, obs, KL(), BALL, steps=2, step_size=0.1, generator=generator(), final_gradient=True
    )
    again = ascend(policy, obs, KL(), BALL, steps=1, step_size=0.1, start=trajectory.deltas[-1])
    assert trajectory.final_gradient is not None
    torch.testing.assert_close(trajectory.final_gradient.norm(dim=-1), again.gradient_norms[0])


def test_gradient_noise_moves_the_point_and_not_the_direction() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    noise = [observations(seed=7), -observations(seed=7)]
    arguments: dict[str, Any] = {"steps": 2, "step_size": 0.1, "step": "raw", "start": 0.1 * obs}
    noisy = ascend(policy, obs, KL(), BALL, gradient_noise=noise.__getitem__, **arguments)
    plain = ascend(policy, obs, KL(), BALL, **arguments)
    assert torch.equal(noisy.directions[0], plain.directions[0])
    expected = BALL.project(plain.deltas[1] + 0.1 * noise[0], obs)
    inside = (plain.deltas[1].abs() < 0.5) & (expected.abs() < 0.5)
    assert inside.any()
    torch.testing.assert_close(noisy.deltas[1][inside], expected[inside])
