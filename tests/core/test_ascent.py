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
    Value,
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


def test_margin_never_counts_a_masked_action_as_runner_up() -> None:
    masked = torch.tensor([2.0, 1.0, torch.finfo(torch.float32).min])
    policy = ModulePolicy(lambda x: x + masked, Categorical(3))
    obs = torch.zeros(1, 3)
    assert Margin().bind(policy, Clean(policy(obs)))(obs).item() == -1.0
