"""Diagnostics against closed forms and dense derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian

from marl_aajr.core.ascent import ascend
from marl_aajr.core.diagnostics import (
    alignment,
    curvature,
    curvature_terms,
    dense_jacobian,
    diagnose,
    directional_gain,
    effective_smoothness,
    output_smoothness,
    secant_curvature,
    spectral_norm,
)
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.objectives import Clean, Objective, Value, make_objective
from marl_aajr.core.output_maps import OutputMap
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from tests.core.test_output_maps import DEFINED
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    random_actions,
    tanh_policy,
)

BALL = PerturbationSet(epsilon=0.3)


def batch(policy: ModulePolicy, obs: Tensor, *, critic: Any = None) -> Clean:
    outputs = policy(obs).detach()
    advantages = observations(len(obs), 1, seed=4)[:, 0]
    return Clean(outputs, random_actions(policy.distribution, outputs), advantages, critic)


def sharp(policy: ModulePolicy) -> ModulePolicy:
    """The same network with weights three times as large: bent enough to see."""
    for parameter in parameters(policy):
        parameter.data.mul_(3)
    return policy


def unit(seed: int = 1, rows: int = 7) -> Tensor:
    return torch.nn.functional.normalize(observations(rows, seed=seed), dim=-1)


def test_norms_of_a_linear_policy_are_those_of_its_weight() -> None:
    weight = observations(3, 6, seed=9)
    policy, obs, u = linear_policy(weight), observations(), unit()
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(dense_jacobian(policy, obs), weight.expand(7, -1, -1))
    torch.testing.assert_close(spectral_norm(policy, obs), values[0].expand(7))
    torch.testing.assert_close(directional_gain(policy, obs, u), (u @ weight.T).norm(dim=-1))
    torch.testing.assert_close(
        alignment(policy, obs, u), (u @ weight.T).square().sum(-1) / weight.square().sum()
    )


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_the_dense_jacobian_has_the_gain_of_the_output_map(
    output: OutputMap, distribution: ActionDistribution
) -> None:
    policy, obs, u = tanh_policy(distribution), observations(), unit()
    along = (dense_jacobian(policy, obs, output=output) @ u[..., None]).norm(dim=(1, 2))
    torch.testing.assert_close(along, directional_gain(policy, obs, u, output=output))
    assert (
        directional_gain(policy, obs, u, output=output) <= spectral_norm(policy, obs, output=output)
    ).all()


def test_alignment_is_one_for_the_only_direction_and_one_in_d_for_a_random_one() -> None:
    row = unit(rows=1)
    only = linear_policy(torch.cat([row, -2 * row]))
    torch.testing.assert_close(alignment(only, observations(1), row), torch.ones(1, dtype=torch.float64))
    policy = tanh_policy(Categorical(5))
    obs = observations(1).repeat(20_000, 1)
    assert alignment(policy, obs, unit(rows=20_000)).mean().item() == pytest.approx(1 / 6, rel=0.05)
    flat = linear_policy(torch.zeros(3, 6, dtype=torch.float64))
    assert (alignment(flat, observations(), unit()) == 0).all()


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        (name, distribution)
        for name in ("kl", "surrogate", "margin")
        for distribution in DISTRIBUTIONS
        if name != "margin" or not isinstance(distribution, DiagGaussian)
    ],
    ids=str,
)
def test_curvature_is_that_of_the_dense_hessian_and_the_sum_of_its_terms(
    name: str, distribution: ActionDistribution
) -> None:
    """wᵀ∇²g w = (J w)ᵀ∇²ℓ(J w) + Σ_i ∂ℓ/∂y_i wᵀ∇²f_i w, in float64."""
    policy, obs, w = sharp(tanh_policy(distribution)), observations(), unit()
    clean, objective = batch(policy, obs), make_objective(name)
    point = obs + 0.1 * observations(seed=3)
    ours = curvature(policy, point, objective, w, clean=clean)
    g = objective.bind(policy, clean)
    for i in range(len(obs)):

        def row(x: Tensor, i: int = i) -> Tensor:
            return g(torch.cat([point[:i], x[None], point[i + 1 :]]))[i]

        dense = hessian(row)(point[i])
        torch.testing.assert_close(ours[i], w[i] @ dense @ w[i])
    through_loss, through_network = curvature_terms(policy, point, objective, w, clean=clean)
    torch.testing.assert_close(through_loss + through_network, ours)
    assert through_network.abs().max() > 0.01
    if name != "margin":
        assert through_loss.abs().max() > 0.01


@pytest.mark.parametrize("name", ["kl", "surrogate", "margin"])
def test_effective_smoothness_bounds_the_curvature(name: str) -> None:
    policy, obs = sharp(tanh_policy(Categorical(5))), observations(200)
    clean, objective, w = batch(policy, obs), make_objective(name), unit(rows=200)
    bound = effective_smoothness(policy, obs, objective, w, clean=clean)
    assert (curvature(policy, obs, objective, w, clean=clean).abs() <= bound * (1 + 1e-9)).all()


def test_the_bound_of_the_loss_is_that_of_its_distribution() -> None:
    """½ in logits, 1/σ² for Gaussian means, both times |Â| for the surrogate, 0 for the margin."""
    advantages = torch.tensor([2.0, -3.0])
    logits = Clean(torch.zeros(2, 3), advantages=advantages)
    gaussian = Clean(torch.tensor([[0.0, 0.0, 1.0, -1.0]] * 2), advantages=advantages)
    for name, discrete, continuous in (
        ("kl", [0.5, 0.5], [7.389, 7.389]),
        ("surrogate", [1.0, 1.5], [14.778, 22.167]),
        ("margin", [0.0, 0.0], [0.0, 0.0]),
    ):
        objective = make_objective(name)
        assert output_smoothness(objective, Categorical(3), logits).tolist() == pytest.approx(discrete)
        bound = output_smoothness(objective, DiagGaussian(2), gaussian)
        assert bound.tolist() == pytest.approx(continuous, rel=1e-3)


def test_a_critic_has_a_curvature_but_no_terms() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    clean = batch(policy, obs, critic=lambda s: -s.square().sum(-1))
    torch.testing.assert_close(
        curvature(policy, obs, Value(), unit(), clean=clean), torch.full((7,), 2.0, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match=r"expected an objective of the policy's outputs, got Value\(\)"):
        curvature_terms(policy, obs, Value(), unit(), clean=clean)
    with pytest.raises(ValueError, match="expected the objective kl, surrogate or margin for a bound"):
        output_smoothness(Value(), Categorical(5), clean)


@pytest.mark.parametrize(
    "threat",
    [
        PerturbationSet(epsilon=0.3),
        PerturbationSet(epsilon=0.3, mask=(True, True, False, True, True, True)),
        PerturbationSet(epsilon=0.3, scale=(1.0, 2.0, 0.5, 1.0, 3.0, 1.0)),
    ],
    ids=["plain", "mask", "scale"],
)
def test_the_secant_of_a_quadratic_is_its_curvature_along_the_step(threat: PerturbationSet) -> None:
    """g = ½ xᵀ A x: (∇g(δ_{t+1}) − ∇g(δ_t)) · d / ‖d‖² = dᵀ A d / ‖d‖², whatever the projection did to d."""
    factor = observations(6, 6, seed=2)
    matrix = factor + factor.T

    def g(outputs: Tensor, clean: Clean) -> Tensor:
        return 0.5 * ((outputs @ matrix) * outputs).sum(-1)

    policy = linear_policy(torch.eye(6, dtype=torch.float64))
    trajectory = ascend(
        policy,
        observations(),
        make_objective(g),
        threat,
        steps=3,
        step_size=0.05,
        step="raw",
        final_gradient=True,
    )
    d = trajectory.deltas[1:] - trajectory.deltas[:-1]
    expected = ((d @ matrix) * d).sum(-1) / d.square().sum(-1)
    torch.testing.assert_close(secant_curvature(trajectory, threat), expected, equal_nan=True)


def test_the_secant_is_undefined_where_nothing_moved() -> None:
    policy = linear_policy(observations(2, 6, seed=5))
    trajectory = ascend(policy, observations(), make_objective("margin"), BALL, steps=3, step_size=1.0)
    secant = secant_curvature(trajectory, BALL)
    assert secant.shape == (2, 7)
    assert (secant[0] == 0).all()  # linear
    assert secant[1].isnan().all()  # at the corner


def test_a_diagnosis_puts_the_measurements_of_a_trajectory_together() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    objective: Objective = make_objective("kl")
    diagnosis = diagnose(policy, obs, objective, BALL, steps=3, step_size=0.05, generator=generator())
    for name in ("gain", "spectral", "frobenius", "curvature", "smoothness", "secant", "alignment"):
        assert getattr(diagnosis, name).shape == (3, 7), name
    point, u = obs + diagnosis.trajectory.deltas[1], diagnosis.trajectory.directions[1]
    torch.testing.assert_close(diagnosis.gain[1], directional_gain(policy, point, u))
    torch.testing.assert_close(diagnosis.spectral[1], spectral_norm(policy, point))
    torch.testing.assert_close(diagnosis.alignment[1], alignment(policy, point, u))
    torch.testing.assert_close(diagnosis.admissible_step, 1 / diagnosis.smoothness)
    assert 0 < diagnosis.monotone_fraction <= 1
    assert (diagnosis.gain <= diagnosis.spectral * (1 + 1e-9)).all()
    assert (diagnosis.spectral <= diagnosis.frobenius * (1 + 1e-9)).all()


def test_measuring_leaves_no_graph_and_no_gradient() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations().requires_grad_(True)
    diagnosis = diagnose(
        policy, obs, make_objective("kl"), BALL, steps=2, step_size=0.05, generator=generator()
    )
    for name in ("gain", "spectral", "frobenius", "curvature", "smoothness", "secant"):
        assert not getattr(diagnosis, name).requires_grad, name
    assert obs.grad is None
    assert all(parameter.grad is None for parameter in parameters(policy))


def test_constants_and_sequences() -> None:
    constant = ModulePolicy(lambda x: torch.ones(len(x), 3, dtype=x.dtype), Categorical(3))
    assert (dense_jacobian(constant, observations()) == 0).all()
    with pytest.raises(
        ValueError, match=r"expected observations \[B, d\] for a dense Jacobian, got \[2, 3, 6\]"
    ):
        dense_jacobian(constant, torch.zeros(2, 3, 6))
