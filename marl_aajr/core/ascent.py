"""The inner maximisation: projected gradient ascent, and the adversarial trajectory it leaves behind.

    v_t     = M ∇_δ g(δ_t)
    u_t     = v_t / ‖v_t‖₂
    δ_{t+1} = Π_Δ(δ_t + η · step(v_t)),        t = 0 … K−1

Training (the AAJR penalty along u_t) and attacking (δ_K) call this one function with different settings.
Source: arXiv 2603.04378; steps as in Madry 2018 (arXiv 1706.06083).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.bound_objective import once, value_and_gradient
from marl_aajr.core.checks import check_finite, one_of, whole
from marl_aajr.core.objectives import Clean, Custom, Objective
from marl_aajr.core.policy import ALL_ROWS, Policy, row_blocks
from marl_aajr.core.starts import Start, is_lost, rounding, starting_point
from marl_aajr.core.threat import PerturbationSet, SetNorm

Step = Literal["sign", "normalized", "raw"]
STEPS: tuple[Step, ...] = get_args(Step)
AUTO: Final = "auto"
"""A step size chosen per row from the measured curvature."""

_BACKTRACKS = 4
_SHRINK = 0.25
"""An automatic step that lowers g is shortened by this factor, this many times at most."""


@dataclass(frozen=True)
class Trajectory:
    """The path of an ascent and what was computed on it, detached from every graph.

    Attributes:
        deltas: δ_0 … δ_K, `[K+1, B, ..., d]`.
        directions: unit ascent directions u_0 … u_{K−1}, `[K, B, ..., d]`; zero where a row has none.
        gradient_norms: ‖v_t‖₂, `[K, B, ...]`.
        values: g(δ_0) … g(δ_K), `[K+1, B, ...]`; up to g(δ_{K−1}) where the last was not asked for.
        has_direction: where v_t is a direction, `[K, B, ...]` bool: not where it vanishes, nor where it is
            rounding noise. That is so where the objective is flat at zero and δ_t is lost in the rounding of
            s, in all features. A row alone decides it, whatever the rows beside it.
        final_gradient: v_K, `[B, ..., d]`, where asked for.
    """

    deltas: Tensor
    directions: Tensor
    gradient_norms: Tensor
    values: Tensor
    has_direction: Tensor
    final_gradient: Tensor | None = None

    @property
    def monotone(self) -> Tensor:
        """Whether a step did not lower the objective, g(δ_{t+1}) ≥ g(δ_t) up to rounding, `[K, B, ...]`.

        One step less where the last value was not asked for.
        """
        return ~_decreased(self.values[:-1], self.values[1:])


def ascend(
    policy: Policy,
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float | Tensor | Literal["auto"],
    step: Step = "sign",
    start: Start | Tensor | None = None,
    generator: torch.Generator | None = None,
    clean: Clean | None = None,
    gradient_noise: Callable[[int], Tensor] | None = None,
    final_gradient: bool = False,
    final_value: bool = True,
    check: bool = True,
) -> Trajectory:
    """Find where an adversary would push each observation.

    Args:
        policy: the policy under attack.
        obs: clean observations s, `[B, ..., d]`.
        objective: g, what the adversary maximises.
        perturbations: the admissible set Δ.
        steps: K ≥ 1.
        step_size: η, in the units of the observations (`[B, 1]`: each row's own); or `"auto"`, which costs
            five more forward passes a step: the maximiser of the quadratic model of g along the step
            (1/|curvature| for raw steps), with the curvature of the step before (secant) and at most the
            radius of the set; shortened where g falls, and no step at all where it keeps falling.
        step: `"sign"` (steepest ascent in L∞), `"normalized"` (in L2) or `"raw"` (the gradient
            itself, the paper's). The first two move in units of the set's `scale`.
        start: δ_0: zero, uniform in Δ, or a point of Δ, `[B, ..., d]`; None: random for objectives that
            are flat at zero.
        generator: source of the random start.
        clean: the batch at its clean observations; None: one forward pass computes the outputs.
        gradient_noise: added to v_t for the step, by t (Langevin dynamics); u_t stays the true direction.
        final_gradient: whether v_K is computed, too.
        final_value: whether g(δ_K) is computed; with v_K it is.
        check: raise on non-finite numbers. Costs a host synchronisation per step on an accelerator.

    Returns:
        The trajectory. Gradients are taken with respect to δ alone: no parameter's `.grad` changes.

    Raises:
        NonFiniteError: a non-finite number, naming where it arose.
        ValueError: settings that make no sense together.
    """
    whole("steps", steps)
    one_of("step", step, STEPS)
    obs = obs.detach()
    delta = starting_point(obs, objective, perturbations, start=start, generator=generator)
    if clean is None:
        with torch.no_grad():
            clean = Clean(policy.once(obs))
    path = obs.new_empty((steps + 1, *obs.shape))
    gradients = obs.new_empty((steps + final_gradient, *obs.shape))
    path[0] = delta
    values = []
    # A function of the user's own may look at more than one row, and so may the noise.
    together = gradient_noise is not None or isinstance(objective, Custom)
    for rows in [ALL_ROWS] if together else row_blocks(obs):
        part, own, size = (policy, objective, clean), perturbations, step_size
        if rows != ALL_ROWS:
            index = torch.arange(len(obs), device=obs.device)[rows]
            part = (policy.select(index), objective.select(index), clean.select(index))
            own, size = own.select(rows), size[rows] if isinstance(size, Tensor) else size
        block = Climb(*part, obs[rows], own, step=step, step_size=size, check=check)
        block.run(path[:, rows], gradients[:, rows], noise=gradient_noise, final_value=final_value)
        values.append(torch.stack(block.values))
    v_last = gradients[-1] if final_gradient else None
    directions = gradients[:steps]
    norms = torch.linalg.vector_norm(directions, dim=-1)
    has_direction = norms > torch.finfo(directions.dtype).tiny
    directions /= norms.where(has_direction, torch.inf).unsqueeze(-1)
    return Trajectory(path, directions, norms, torch.cat(values, 1), has_direction, v_last)


class Climb:
    """The ascent of some rows of a batch, step by step; arguments as for `ascend`."""

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        clean: Clean,
        obs: Tensor,
        perturbations: PerturbationSet,
        *,
        step: Step,
        step_size: float | Tensor | Literal["auto"],
        check: bool,
    ) -> None:
        self.g, self.mask = objective.bind(policy, clean), clean.mask
        self.obs, self.perturbations = obs, perturbations
        self.step, self.step_size, self.check = step, step_size, check
        self.preconditioner = perturbations.preconditioner(obs)
        self.rounding = rounding(obs) if objective.flat_at_zero else None
        self.values: list[Tensor] = []
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=2 if isinstance(step_size, str) else 0)
        """δ and ∇g of the last two points, for the automatic step."""

    def run(
        self, path: Tensor, gradients: Tensor, *, noise: Callable[[int], Tensor] | None, final_value: bool
    ) -> None:
        """Fill in δ_1 … δ_K of `path`, and v_0 … v_{K−1} or v_K of `gradients`."""
        for t, delta in enumerate(path[: len(gradients)]):
            gradients[t] = self.gradient(delta)
            if t + 1 < len(path):
                v = gradients[t] if noise is None else gradients[t] + noise(t)
                path[t + 1] = self.next_point(delta, v)
        if len(gradients) < len(path) and final_value:
            with torch.no_grad():
                self.values.append(once(self.g, self.obs + path[-1]))
            if self.check:
                check_finite(f"the inner objective at step {len(gradients)}", self.values[-1])

    def gradient(self, delta: Tensor) -> Tensor:
        """The gradient v_t = M ∇g(δ_t); g(δ_t) is recorded."""
        return self.taken(delta, *value_and_gradient(self.g, self.obs, delta, mask=self.mask))

    def taken(self, delta: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """v_t, given g(δ_t) and ∇g(δ_t)."""
        if self.check:
            t = len(self.values)
            check_finite(f"the inner objective at step {t}", value)
            check_finite(f"the gradient of the inner objective at step {t}", gradient)
        if self.rounding is not None:
            gradient = gradient.masked_fill(is_lost(delta, self.rounding).unsqueeze(-1), 0.0)
        self.values.append(value)
        self.recent.append((delta, gradient))
        return gradient if self.preconditioner is None else gradient * self.preconditioner

    def next_point(self, delta: Tensor, v: Tensor) -> Tensor:
        """The next perturbation δ_{t+1} = Π_Δ(δ_t + η · step(v_t))."""
        direction = step_direction(self.step, v, self.preconditioner, block=self.perturbations.block)
        if isinstance(self.step_size, str):
            return self._line_search(delta, direction)
        if isinstance(self.step_size, Tensor):  # a size for each row
            return self.perturbations.project(torch.addcmul(delta, direction, self.step_size), self.obs)
        return self.perturbations.project(torch.add(delta, direction, alpha=self.step_size), self.obs)

    @torch.no_grad()
    def _line_search(self, delta: Tensor, direction: Tensor) -> Tensor:
        """The automatic step: the maximiser of the quadratic model, then backtracking, row by row."""
        tiny = torch.finfo(direction.dtype).tiny
        size = self.perturbations.epsilon / self.perturbations.size(direction).clamp_min(tiny**0.5)
        if len(self.recent) > 1:
            (before, earlier), (delta, gradient) = self.recent
            displacement, change = delta - before, gradient - earlier
            curvature = _dot(change, displacement).abs() / _dot(displacement, displacement).clamp_min(tiny)
            model = _dot(gradient, direction) / (curvature * _dot(direction, direction)).clamp_min(tiny)
            size = torch.minimum(size, model)
        for _ in range(1 + _BACKTRACKS):
            candidate = self.perturbations.project(delta + size.unsqueeze(-1) * direction, self.obs)
            decreased = _decreased(self.values[-1], once(self.g, self.obs + candidate))
            size = torch.where(decreased, _SHRINK * size, size)
        return torch.where(decreased.unsqueeze(-1), delta, candidate)


def steepest(norm: SetNorm) -> Step:
    """The step of steepest ascent in a norm."""
    return "sign" if norm == "linf" else "normalized"


def step_direction(
    step: Step, v: Tensor, preconditioner: Tensor | None, *, block: int | None = None
) -> Tensor:
    """The move of step size 1 from the gradient v = M ∇g, `[..., d]`; in L2, of each block of a set."""
    if step == "raw":
        return v
    if step == "sign":
        unit = v.sign()
    else:
        parts = v if block is None else v.unflatten(-1, (-1, block))
        norm = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
        unit = (parts / norm.clamp_min(torch.finfo(v.dtype).tiny)).view_as(v)
    return unit if preconditioner is None else unit * preconditioner


def largest(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's point of the largest value, and that value: of `[T, B, d]` and `[T, B]`."""
    value, index = values.max(0)
    return points[index, torch.arange(len(index), device=index.device)], value


def _decreased(before: Tensor, after: Tensor) -> Tensor:
    """Whether a value is lower than before by more than rounding; a NaN counts as lower."""
    slack = 4 * torch.finfo(before.dtype).eps * before.abs().clamp_min(1e-3)
    return ~(after >= before - slack)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
