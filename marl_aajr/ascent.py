"""The inner maximisation: projected gradient ascent, and the adversarial trajectory it leaves behind.

    v_t     = M ∇_δ g(δ_t)
    u_t     = v_t / ‖v_t‖₂
    δ_{t+1} = Π_Δ(δ_t + η · step(v_t)),        t = 0 … K−1

Training (the AAJR penalty along u_t) and attacking (δ_K) call this one function with different settings.
Source: arXiv 2603.04378; steps as in Madry 2018 (arXiv 1706.06083).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_aajr.checks import one_of
from marl_aajr.numerics import check_finite
from marl_aajr.objectives import BoundObjective, Clean, Objective
from marl_aajr.policy import Policy
from marl_aajr.threat import PerturbationSet

Step = Literal["sign", "normalized", "raw"]
Start = Literal["zero", "random"]
STEPS: tuple[Step, ...] = get_args(Step)

_DIRECTION_TOLERANCE = 16.0
"""Gradients below this many rounding units of the batch's largest gradient carry no direction."""


@dataclass(frozen=True)
class Trajectory:
    """What the ascent saw, detached from every graph.

    Attributes:
        deltas: δ_0 … δ_K, ``[K+1, B, ..., d]``.
        directions: unit ascent directions u_0 … u_{K−1}, ``[K, B, ..., d]``; zero where a row has none.
        gradient_norms: ‖v_t‖₂, ``[K, B, ...]``.
        values: g(δ_0) … g(δ_K), ``[K+1, B, ...]``.
        has_direction: where ‖v_t‖ is above the rounding noise, ``[K, B, ...]`` bool.
    """

    deltas: Tensor
    directions: Tensor
    gradient_norms: Tensor
    values: Tensor
    has_direction: Tensor

    @property
    def monotone(self) -> Tensor:
        """Whether the step did not lower the objective, g(δ_{t+1}) ≥ g(δ_t), ``[K, B, ...]`` bool."""
        slack = 4 * torch.finfo(self.values.dtype).eps * self.values[:-1].abs().clamp_min(1e-3)
        return self.values[1:] >= self.values[:-1] - slack


def ascend(
    policy: Policy,
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float,
    step: Step = "sign",
    start: Start | Tensor | None = None,
    generator: torch.Generator | None = None,
    clean: Clean | None = None,
    check: bool = True,
) -> Trajectory:
    """Find where an adversary would push each observation.

    Args:
        policy: the policy under attack.
        obs: clean observations s, ``[B, ..., d]``.
        objective: g, what the adversary maximises.
        perturbations: the admissible set Δ.
        steps: K ≥ 1.
        step_size: η, in the units of the observations.
        step: ``"sign"`` (steepest ascent in L∞), ``"normalized"`` (in L2) or ``"raw"`` (the gradient
            itself, the paper's). The first two move in units of the set's ``scale``.
        start: δ_0: zero, uniform in Δ, or a point of Δ, ``[B, ..., d]``; None: random for objectives that
            are flat at zero.
        generator: source of the random start.
        clean: the batch at its clean observations; None: one forward pass computes the outputs.
        check: raise on non-finite numbers. Costs a host synchronisation per step on an accelerator.

    Returns:
        The trajectory. Gradients are taken with respect to δ alone: no parameter's ``.grad`` changes.

    Raises:
        NonFiniteError: a non-finite number, naming where it arose.
        ValueError: settings that make no sense together.
    """
    _check_steps(steps, step)
    obs = obs.detach()
    delta = _first(obs, objective, perturbations, start, generator)
    with torch.no_grad():
        clean = clean or Clean(policy(obs))
    g = objective.bind(policy, clean)
    preconditioner = perturbations.preconditioner(obs)
    deltas, gradients, values = [delta], [], []
    for t in range(steps):
        value, gradient = _value_and_gradient(g, obs, delta)
        if check:
            check_finite(f"the inner objective at step {t}", value)
            check_finite(f"the gradient of the inner objective at step {t}", gradient)
        v = gradient if preconditioner is None else gradient * preconditioner
        delta = perturbations.project(delta + _move(step, v, step_size, preconditioner), obs)
        deltas.append(delta)
        gradients.append(v)
        values.append(value)
    with torch.no_grad():
        values.append(g(obs + delta))
    if check:
        check_finite(f"the inner objective at step {steps}", values[-1])
    directions, norms, has_direction = _unit(torch.stack(gradients))
    return Trajectory(torch.stack(deltas), directions, norms, torch.stack(values).detach(), has_direction)


def _value_and_gradient(g: BoundObjective, obs: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        delta = delta.detach().requires_grad_(True)
        value = g(obs + delta)
        (gradient,) = torch.autograd.grad(value.sum(), delta)
    return value.detach(), gradient


def _move(step: Step, v: Tensor, step_size: float, preconditioner: Tensor | None) -> Tensor:
    if step == "raw":
        return step_size * v
    if step == "sign":
        unit = v.sign()
    else:
        norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        unit = v / norm.clamp_min(torch.finfo(v.dtype).tiny)
    return step_size * (unit if preconditioner is None else unit * preconditioner)


def _unit(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, norms and where a direction exists; the threshold is relative to batch and dtype."""
    norms = torch.linalg.vector_norm(v, dim=-1)
    info = torch.finfo(v.dtype)
    threshold = (_DIRECTION_TOLERANCE * info.eps * norms.amax()).clamp_min(info.tiny)
    has_direction = norms > threshold
    directions = v / norms.clamp_min(info.tiny).unsqueeze(-1)
    return directions * has_direction.unsqueeze(-1), norms, has_direction


def _check_steps(steps: int, step: str) -> None:
    if steps < 1:
        raise ValueError(f"expected steps ≥ 1, got {steps}")
    one_of("step", step, STEPS)


def _first(
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    start: Start | Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """δ_0."""
    if isinstance(start, Tensor):
        return perturbations.project(start.detach(), obs)
    if start is None:
        start = "random" if objective.flat_at_zero else "zero"
    if start == "zero":
        if objective.flat_at_zero:
            raise ValueError(
                f"expected start='random' for {objective}, got 'zero'; its gradient vanishes at δ = 0"
            )
        return torch.zeros_like(obs)
    if generator is None:
        raise ValueError("expected a torch.Generator for a random start, got None; pass generator=")
    return perturbations.sample(obs, generator=generator)
