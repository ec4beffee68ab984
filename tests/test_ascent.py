"""The inner maximisation: closed forms, stop-gradient, and what it leaves untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from marl_aajr.ascent import STEPS, Step, ascend
from marl_aajr.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.numerics import NonFiniteError
from marl_aajr.objectives import KL, OBJECTIVES, Clean, Margin, Objective, Surrogate, make_objective
from marl_aajr.policy import ModulePolicy
from marl_aajr.threat import PerturbationSet
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


@pytest.mark.parametrize(
    ("distribution", "objective"),
    [
        (distribution, objective)
        for distribution in DISTRIBUTIONS
        for objective in OBJECTIVES
        if not (objective == "margin" and isinstance(distribution, DiagGaussian))
    ],
    ids=str,
)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_combination_stays_inside_and_climbs(
    distribution: ActionDistribution, objective: str, step: Step, norm: Any
) -> None:
    policy, obs = tanh_policy(distribution), observations()
    threat = PerturbationSet(epsilon=0.3, norm=norm, mask=(True,) * 5 + (False,))
    outputs = policy(obs)
    clean = Clean(outputs, random_actions(distribution, outputs), observations(7, 1, seed=4)[:, 0])
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
        (KL(), {"steps": 0}, "expected steps ≥ 1, got 0"),
        (KL(), {"step": "big"}, "expected step out of sign, normalized, raw"),
        (Surrogate(), {}, "expected actions and advantages"),
    ],
)
def test_senseless_settings_are_refused(objective: Objective, settings: dict[str, Any], message: str) -> None:
    arguments = {"steps": 2, "step_size": 0.1, "generator": generator(), **settings}
    with pytest.raises(ValueError, match=message):
        ascend(tanh_policy(Categorical(5)), observations(), objective, BALL, **arguments)


def test_objectives_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="out of kl, surrogate, margin; got 'entropy'"):
        make_objective("entropy")
    with pytest.raises(ValueError, match="got a Gaussian one"):
        Margin().check(DiagGaussian(2))


def test_margin_never_counts_a_masked_action_as_runner_up() -> None:
    masked = torch.tensor([2.0, 1.0, torch.finfo(torch.float32).min])
    policy = ModulePolicy(lambda x: x + masked, Categorical(3))
    obs = torch.zeros(1, 3)
    assert Margin().bind(policy, Clean(policy(obs)))(obs).item() == -1.0
