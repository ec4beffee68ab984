"""Diagnostics of a policy where an adversary goes: how large its Jacobian is, along what, and how curved.

    gain         ‖J u‖                       alignment     ‖J u‖² / ‖J‖_F²
    curvature    wᵀ ∇²g w  =  (J w)ᵀ ∇²ℓ (J w)  +  Σ_i ∂ℓ/∂y_i · wᵀ ∇²f_i w           g = ℓ ∘ f
    smoothness   L_eff     =  L_ℓ ‖J w‖²        +  |Σ_i …|                              ≥ |wᵀ ∇²g w|

Raw-gradient steps with η ≤ 1/L_eff along the real displacement d and on its whole segment do not lower g:
g(δ + d) ≥ g(δ) + ‖d‖²/(2η), also where the projection bends d away from the gradient. The first term of the
curvature is what a Jacobian penalty lowers; the second depends on the network's own curvature.

Everything works on any `Policy`, outside training, and is exact: these are measurements, not penalties.
Nothing has a graph or touches a `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.ascent import Step, Trajectory, ascend
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian
from marl_aajr.core.jacobian import JVPBackend, jvp
from marl_aajr.core.objectives import KL, Clean, Margin, Objective, Surrogate
from marl_aajr.core.output_maps import OutputMap, check_output_map, cotangent, squared_gain
from marl_aajr.core.policy import ModulePolicy, Policy
from marl_aajr.core.threat import PerturbationSet


def directional_gain(
    policy: Policy,
    obs: Tensor,
    direction: Tensor,
    *,
    output: OutputMap = "logits",
    backend: JVPBackend = "auto",
) -> Tensor:
    """‖J_φ(s) u‖, `[B, ..., d] -> [B, ...]`; the direction is not normalised."""
    check_output_map(output, policy.distribution)
    outputs, tangent = jvp(policy, obs.detach(), direction.detach(), backend=backend)
    return squared_gain(output, policy.distribution, outputs, tangent).sqrt().detach()


def dense_jacobian(policy: Policy, obs: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """Aᵀ J with A Aᵀ the metric of φ, `[B, d] -> [B, m, d]`: its singular values are those of J_φ.

    One vector-Jacobian product for each of the m outputs.
    """
    check_output_map(output, policy.distribution)
    if obs.ndim != 2:
        raise ValueError(f"expected observations [B, d] for a dense Jacobian, got {list(obs.shape)}")
    with torch.enable_grad():
        point = obs.detach().requires_grad_(True)
        outputs = policy(point)
    units = torch.eye(outputs.shape[-1]).to(outputs).unsqueeze(1).expand(-1, *outputs.shape)
    weights = [cotangent(output, policy.distribution, outputs, unit).detach() for unit in units]
    return torch.stack([_gradient(outputs, point, w) for w in weights], 1).detach()


def spectral_norm(policy: Policy, obs: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """‖J_φ(s)‖_op, `[B, d] -> [B]`."""
    return torch.linalg.matrix_norm(dense_jacobian(policy, obs, output=output), 2)


def alignment(policy: Policy, obs: Tensor, direction: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """‖J_φ u‖² / ‖J_φ‖_F² for unit u, `[B]`: 1 where u is the only direction that matters, 0 for J = 0.

    A random direction has 1/d on average.
    """
    jacobian = dense_jacobian(policy, obs, output=output)
    along = (jacobian @ direction.unsqueeze(-1)).square().sum((-2, -1))
    total = jacobian.square().sum((-2, -1))
    return along / total.clamp_min(torch.finfo(total.dtype).tiny)


def curvature(
    policy: Policy, obs: Tensor, objective: Objective, direction: Tensor, *, clean: Clean
) -> Tensor:
    """wᵀ ∇²g w at `obs` = s + δ by a Hessian-vector product, `[B, ..., d] -> [B, ...]`.

    The direction is w; for a curvature per unit length, a unit vector. `clean` is the batch at s.
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
    if "critic" in objective.needs:
        raise ValueError(f"expected an objective of the policy's outputs, got {objective}; use curvature()")
    ell = objective.bind(ModulePolicy(lambda outputs: outputs, policy.distribution), clean)
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
    bound = torch.full_like(outputs[..., 0], 0.5)
    if isinstance(distribution, DiagGaussian):
        bound = (-2 * distribution.split(outputs)[1]).exp().amax(-1)
    if isinstance(objective, Surrogate):
        assert clean.advantages is not None
        bound = bound * clean.advantages.abs()
    return bound


def secant_curvature(trajectory: Trajectory, perturbations: PerturbationSet) -> Tensor:
    """(∇g(δ_{t+1}) − ∇g(δ_t)) · d_t / ‖d_t‖² with d_t = δ_{t+1} − δ_t: the mean curvature along the step.

    It costs nothing: the ascent has the gradients.

    Returns:
        `[K−1, B, ...]`, or `[K, B, ...]` for an ascent with `final_gradient`; NaN where nothing moved.
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


@dataclass(frozen=True)
class Diagnosis:
    """The measurements of `diagnose` at the points s + δ_t, t < K, of an adversarial trajectory.

    Attributes:
        trajectory: the ascent.
        gain: ‖J u_t‖, `[K, B]`.
        spectral: ‖J‖_op, `[K, B]`.
        frobenius: ‖J‖_F, `[K, B]`.
        curvature: u_tᵀ ∇²g u_t, `[K, B]`.
        smoothness: L_eff along u_t, `[K, B]`.
        secant: mean curvature along the steps, `[K, B]`; NaN where nothing moved.
    """

    trajectory: Trajectory
    gain: Tensor
    spectral: Tensor
    frobenius: Tensor
    curvature: Tensor
    smoothness: Tensor
    secant: Tensor

    @property
    def alignment(self) -> Tensor:
        """‖J u_t‖² / ‖J‖_F², `[K, B]`."""
        total = self.frobenius.square()
        return self.gain.square() / total.clamp_min(torch.finfo(total.dtype).tiny)

    @property
    def admissible_step(self) -> Tensor:
        """1 / L_eff, `[K, B]`: raw-gradient steps of this size along u_t do not lower g."""
        return 1 / self.smoothness

    @property
    def monotone_fraction(self) -> float:
        """Share of the steps that did not lower g."""
        return self.trajectory.monotone.double().mean().item()


def diagnose(
    policy: Policy,
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float,
    step: Step = "raw",
    generator: torch.Generator | None = None,
    clean: Clean | None = None,
    output: OutputMap = "logits",
) -> Diagnosis:
    """Walk an adversarial trajectory and measure the policy at its points.

    Arguments as for `ascend`; the objective is one that `output_smoothness` knows a bound for, the step-size
    condition is about `"raw"` steps, and `output` is φ of the gains and norms.
    """
    with policy.fixed():
        if clean is None:
            with torch.no_grad():
                clean = Clean(policy(obs))
        trajectory = ascend(
            policy,
            obs,
            objective,
            perturbations,
            steps=steps,
            step_size=step_size,
            step=step,
            generator=generator,
            clean=clean,
            final_gradient=True,
        )
        points = obs.detach() + trajectory.deltas[:steps]
        pairs = list(zip(points, trajectory.directions, strict=True))
        along = [(policy, x, objective, u) for x, u in pairs]
        jacobians = torch.stack([dense_jacobian(policy, x, output=output) for x in points])
        return Diagnosis(
            trajectory=trajectory,
            gain=torch.stack([directional_gain(policy, x, u, output=output) for x, u in pairs]),
            spectral=torch.linalg.matrix_norm(jacobians, 2),
            frobenius=torch.linalg.matrix_norm(jacobians),
            curvature=torch.stack([curvature(*at, clean=clean) for at in along]),
            smoothness=torch.stack([effective_smoothness(*at, clean=clean) for at in along]),
            secant=secant_curvature(trajectory, perturbations),
        )


def _second_derivative(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """d²/dh² function(x + h w) at h = 0, row by row."""
    with torch.enable_grad():
        variable = point.detach().clone().requires_grad_(True)
        along = _gradient(function(variable).sum(), variable) * direction
        return (_gradient(along.sum(), variable) * direction).sum(-1).detach()


def _gradient(outputs: Tensor, inputs: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gradient, with its graph; 0 where the outputs do not depend on the inputs."""
    if not outputs.requires_grad:
        return torch.zeros_like(inputs)
    (gradient,) = torch.autograd.grad(
        outputs, inputs, weight, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient
