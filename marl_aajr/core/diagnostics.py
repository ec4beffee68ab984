"""Diagnostics of a policy where an adversary goes: how large its Jacobian is, along what, and how curved.

    gain          ‖J u‖                      alignment     ‖J u‖² / ‖J‖_F²
    classes       F_γ: ‖J‖_op ≤ γ            F_ad(γ): ‖J u_t‖ ≤ γ,  both at the sampled points s + δ_t
    step size     monotone ascent for η ≤ 1 / L_eff (`marl_aajr.core.curvature`)

Everything works on any `Policy` with observations `[B, d]` and objective,
outside training, and is exact: these are measurements, not penalties. Nothing has a graph or touches a
`.grad`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.ascent import Step, Trajectory, ascend
from marl_aajr.core.curvature import curvature, effective_smoothness, secant_curvature
from marl_aajr.core.jacobian import JVPBackend, jvp
from marl_aajr.core.objectives import Clean, Objective
from marl_aajr.core.output_maps import OutputMap, check_output_map, cotangent, squared_gain
from marl_aajr.core.policy import Policy
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
    rows = []
    for i in range(outputs.shape[-1]):
        unit = torch.zeros_like(outputs)
        unit[:, i] = 1
        w = cotangent(output, policy.distribution, outputs, unit).detach()
        if outputs.requires_grad:
            (row,) = torch.autograd.grad(outputs, point, w, retain_graph=True, allow_unused=True)
        else:
            row = None
        rows.append(torch.zeros_like(point) if row is None else row)
    return torch.stack(rows, 1).detach()


def spectral_norm(policy: Policy, obs: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """‖J_φ(s)‖_op, `[B, d] -> [B]`."""
    return torch.linalg.matrix_norm(dense_jacobian(policy, obs, output=output), 2)


def frobenius_norm(policy: Policy, obs: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """‖J_φ(s)‖_F, `[B, d] -> [B]`."""
    return torch.linalg.matrix_norm(dense_jacobian(policy, obs, output=output))


def alignment(policy: Policy, obs: Tensor, direction: Tensor, *, output: OutputMap = "logits") -> Tensor:
    """‖J_φ u‖² / ‖J_φ‖_F² for unit u, `[B]`: 1 where u is the only direction that matters, 0 for J = 0.

    A random direction has 1/d on average.
    """
    jacobian = dense_jacobian(policy, obs, output=output)
    along = (jacobian @ direction.unsqueeze(-1)).square().sum((-2, -1))
    total = jacobian.square().sum((-2, -1))
    return along / total.clamp_min(torch.finfo(total.dtype).tiny)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` measured at the points s + δ_t, t < K, of an adversarial trajectory.

    Attributes:
        trajectory: the ascent itself.
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

    def in_global_class(self, gain_bound: float) -> bool:
        """Whether ‖J‖_op ≤ γ at the sampled points: membership in F_γ as far as they tell."""
        return bool((self.spectral <= gain_bound).all())

    def in_adaptive_class(self, gain_bound: float) -> bool:
        """Whether ‖J u_t‖ ≤ γ at the sampled points: membership in F_ad(γ) as far as they tell."""
        return bool((self.gain <= gain_bound).all())


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

    Args:
        policy: the policy.
        obs: clean observations s, `[B, d]`.
        objective: g; one that `output_smoothness` knows a bound for.
        perturbations: Δ.
        steps: K.
        step_size: η in the units of the observations (of the raw gradient for `"raw"`).
        step: the kind of step; the step-size condition is about `"raw"`.
        generator: source of the random start.
        clean: the batch at s, with actions and advantages for `surrogate`.
        output: φ of the gains and norms.
    """
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
        last="gradient",
    )
    points = [obs.detach() + delta for delta in trajectory.deltas[:steps]]
    pairs = list(zip(points, trajectory.directions, strict=True))
    jacobians = [dense_jacobian(policy, point, output=output) for point in points]
    return Diagnosis(
        trajectory=trajectory,
        gain=torch.stack([directional_gain(policy, x, u, output=output) for x, u in pairs]),
        spectral=torch.stack([torch.linalg.matrix_norm(J, 2) for J in jacobians]),
        frobenius=torch.stack([torch.linalg.matrix_norm(J) for J in jacobians]),
        curvature=torch.stack([curvature(policy, x, objective, u, clean=clean) for x, u in pairs]),
        smoothness=torch.stack(
            [effective_smoothness(policy, x, objective, u, clean=clean) for x, u in pairs]
        ),
        secant=secant_curvature(trajectory, perturbations),
    )
