"""Curvature of the inner objective, which decides how large a step of the adversary may be.

    wᵀ ∇²g w  =  (J w)ᵀ ∇²ℓ (J w)  +  Σ_i ∂ℓ/∂y_i · wᵀ ∇²f_i w           g = ℓ ∘ f
    L_eff     =  L_ℓ ‖J w‖²        +  |Σ_i …|                              ≥ |wᵀ ∇²g w|

Raw-gradient steps with η ≤ 1/L_eff along the real displacement d and on its whole segment do not lower g:
g(δ + d) ≥ g(δ) + ‖d‖²/(2η), also where the projection bends d away from the gradient. The first term is
what a Jacobian penalty lowers; the second depends on the network's own curvature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_aajr.core.ascent import Trajectory
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian
from marl_aajr.core.jacobian import jvp
from marl_aajr.core.objectives import KL, Clean, Margin, Objective, Surrogate
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet


def curvature(
    policy: Policy, obs: Tensor, objective: Objective, direction: Tensor, *, clean: Clean
) -> Tensor:
    """wᵀ ∇²g w by a Hessian-vector product, `[B, ..., d] -> [B, ...]`.

    Args:
        policy: the policy.
        obs: where, s + δ.
        objective: g.
        direction: w; for a curvature per unit length, a unit vector.
        clean: the batch at its clean observations s.
    """
    return _second_derivative(objective.bind(policy, clean), obs, direction)


def curvature_terms(
    policy: Policy, obs: Tensor, objective: Objective, direction: Tensor, *, clean: Clean
) -> tuple[Tensor, Tensor]:
    """The two terms of the curvature: through the loss, and through the network.

    Returns:
        (J w)ᵀ ∇²ℓ (J w) and Σ_i ∂ℓ/∂y_i · wᵀ ∇²f_i w, each `[B, ...]`; their sum is `curvature`.

    Raises:
        ValueError: an objective that is no function of the policy's outputs.
    """
    ell = _of_outputs(objective, policy.distribution, clean)
    outputs, tangent = (tensor.detach() for tensor in jvp(policy, obs.detach(), direction))
    with torch.enable_grad():
        variable = outputs.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(ell(variable).sum(), variable)

    def weighted(point: Tensor) -> Tensor:
        return (slope * policy(point)).sum(-1)

    return _second_derivative(ell, outputs, tangent), _second_derivative(weighted, obs, direction)


def effective_smoothness(
    policy: Policy, obs: Tensor, objective: Objective, direction: Tensor, *, clean: Clean
) -> Tensor:
    """L_eff = L_ℓ ‖J w‖² + |Σ_i ∂ℓ/∂y_i · wᵀ ∇²f_i w| ≥ |wᵀ ∇²g w|, `[B, ...]`."""
    bound = output_smoothness(objective, policy.distribution, clean)
    _, through_network = curvature_terms(policy, obs, objective, direction, clean=clean)
    _, tangent = jvp(policy, obs.detach(), direction)
    return bound * tangent.detach().square().sum(-1) + through_network.abs()


def output_smoothness(objective: Objective, distribution: ActionDistribution, clean: Clean) -> Tensor:
    """L_ℓ, a bound of ∇²ℓ over the distribution inputs, `[B, ...]`.

    ½ for the KL divergence in logits, max 1/σ² for Gaussians (at the clean observation: where σ depends on
    the observation there is no bound, and this is none), both times |Â| for `surrogate`; 0 for `margin`.

    Raises:
        ValueError: an objective for which no bound is known.
    """
    outputs = clean.outputs.detach()
    if isinstance(objective, Margin):
        return torch.zeros_like(outputs[..., 0])
    if not isinstance(objective, KL | Surrogate):
        raise ValueError(f"expected the objective kl, surrogate or margin for a bound, got {objective}")
    if isinstance(distribution, DiagGaussian):
        bound = (-2 * distribution.split(outputs)[1]).exp().amax(-1)
    else:
        bound = torch.full_like(outputs[..., 0], 0.5)
    if isinstance(objective, Surrogate):
        assert clean.advantages is not None
        bound = bound * clean.advantages.abs()
    return bound


def secant_curvature(trajectory: Trajectory, perturbations: PerturbationSet) -> Tensor:
    """(∇g(δ_{t+1}) − ∇g(δ_t)) · d_t / ‖d_t‖² with d_t = δ_{t+1} − δ_t: the mean curvature along the step.

    It costs nothing: the ascent has the gradients.

    Returns:
        `[K−1, B, ...]`, or `[K, B, ...]` for an ascent with `last="gradient"`; NaN where nothing moved.
    """
    slopes = trajectory.directions * trajectory.gradient_norms.unsqueeze(-1)
    if trajectory.final_gradient is not None:
        slopes = torch.cat([slopes, trajectory.final_gradient.unsqueeze(0)])
    displacement = trajectory.deltas[1 : len(slopes)] - trajectory.deltas[: len(slopes) - 1]
    change = slopes[1:] - slopes[:-1]
    if (preconditioner := perturbations.preconditioner(displacement)) is not None:
        # v = M ∇g, and d_t is zero where M is.
        change = change / torch.where(preconditioner > 0, preconditioner, 1.0)
    length = displacement.square().sum(-1)
    return (change * displacement).sum(-1) / torch.where(length > 0, length, torch.nan)


def _of_outputs(
    objective: Objective, distribution: ActionDistribution, clean: Clean
) -> Callable[[Tensor], Tensor]:
    """ℓ: the objective as a function of the distribution inputs."""
    if "critic" in objective.needs:
        raise ValueError(f"expected an objective of the policy's outputs, got {objective}; use curvature()")
    return objective.bind(ModulePolicy(lambda outputs: outputs, distribution), clean)


def _second_derivative(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """d²/dh² function(x + h w) at h = 0, row by row."""
    with torch.enable_grad():
        variable = point.detach().clone().requires_grad_(True)
        value = function(variable).sum()
        if not value.requires_grad:
            return torch.zeros_like(variable[..., 0])
        (slope,) = torch.autograd.grad(value, variable, create_graph=True)
        along = (slope * direction).sum()
        if not along.requires_grad:  # linear
            return torch.zeros_like(variable[..., 0])
        (bent,) = torch.autograd.grad(along, variable, allow_unused=True)
    return torch.zeros_like(variable[..., 0]) if bent is None else (bent * direction).sum(-1)
