"""Auto-PGD: an ascent that finds its own step size, row by row (Croce & Hein 2020, arXiv 2003.01690).

    z_{k+1} = Π_Δ(δ_k + η_k · step(∇g(δ_k)))
    δ_{k+1} = Π_Δ(δ_k + α (z_{k+1} − δ_k) + (1 − α)(δ_k − δ_{k−1})),       α = 0.75 (1 for k = 0)

η starts at 2ε. At the checkpoints w_j = ⌈p_j K⌉, with p_0 = 0, p_1 = 0.22 and
p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), a row halves its η and goes back to its best point where

    1. fewer than ρ = 0.75 of the steps since the last checkpoint raised g, or
    2. η was not halved at the last checkpoint and the best g has not risen since.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.gradient import PGD
from marl_aajr.core.ascent import steepest, step_direction
from marl_aajr.core.bound_objective import BoundObjective, value_and_gradient
from marl_aajr.core.checks import check_finite
from marl_aajr.core.objectives import Clean, Objective
from marl_aajr.core.policy import Policy, where_rows
from marl_aajr.core.threat import PerturbationSet

_MOMENTUM = 0.75
_RHO = 0.75
_FIRST_STEP = 2.0
"""η_0 in units of ε."""


@dataclass(frozen=True, kw_only=True)
class StrongPGD(PGD, mixes_sizes=True):
    """Auto-PGD with restarts: no step size to choose, and none that a defence could be tuned against.

    The starts are those of `PGD`. The step sizes are relative to the set's radius, so that masks and
    scales are respected; the step is the sign of the gradient (L∞) or its direction (L2).

    Attributes:
        steps: K.
        restarts: trajectories in all.

    Raises:
        ValueError: a setting out of its range, `step_size` or `step`, which it chooses itself.

    Source: Croce & Hein 2020 (arXiv 2003.01690), algorithm 1; a checkpoint is looked at after w_j steps, as
    in the authors' code.
    """

    name: ClassVar[str] = "pgd-strong"
    summary: ClassVar[str] = "Auto-PGD on the KL divergence: adaptive steps, momentum, five starts"

    steps: int = 20
    restarts: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.step_size, self.step) != (PGD.step_size, PGD.step):
            raise ValueError(
                f"expected no step_size and step for {self.name}, which adapts them, got {self.step_size} "
                f"and {self.step!r}; use pgd for steps of your own"
            )

    def _ascend(
        self, policy: Policy, obs: Tensor, objective: Objective, clean: Clean, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        g = objective.bind(policy, clean)
        return auto_ascend(g, obs, self.perturbations, steps=self.steps, start=start)


@dataclass(frozen=True, kw_only=True)
class StrongMarginPGD(StrongPGD, mixes_sizes=True):
    """`StrongPGD` on the margin between the greedy action and its rival."""

    name: ClassVar[str] = "pgd-strong-margin"
    summary: ClassVar[str] = "Auto-PGD on the margin of the greedy action (discrete actions)"

    objective: str | Objective = "margin"


def checkpoints(steps: int) -> list[int]:
    """The steps w_1 < w_2 < … ≤ K after which η may be halved."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    return sorted({ceil(p * steps - 1e-9) for p in fractions[1:] if p <= 1})


def auto_ascend(
    g: BoundObjective, obs: Tensor, perturbations: PerturbationSet, *, steps: int, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Auto-PGD from one start; the module's docstring has the equations.

    Args:
        g: the objective of this batch.
        obs: s, `[B, d]`.
        perturbations: Δ.
        steps: K.
        start: δ_0, `[B, d]`.

    Returns:
        The best δ of each row, `[B, d]`, and its g, `[B]`.

    Raises:
        NonFiniteError: g or its gradient is not finite.
    """
    delta = previous = perturbations.project(start, obs)
    value, gradient = _evaluate(g, obs, delta, step=0)
    best, best_value, best_gradient = delta, value, gradient
    step_size = obs.new_ones(len(obs), 1) * perturbations.radius(obs, _FIRST_STEP)
    step_size_then, best_value_then = step_size, best_value
    rises, since = torch.zeros_like(value), 0
    ahead, kind = checkpoints(steps), steepest(perturbations.norm)
    preconditioner = perturbations.preconditioner(obs)
    for k in range(steps):
        alpha = _MOMENTUM if k else 1.0
        v = gradient if preconditioner is None else gradient * preconditioner
        direction = step_direction(kind, v, preconditioner, block=perturbations.block)
        z = perturbations.project(delta + step_size * direction, obs)
        moved = delta + alpha * (z - delta) + (1 - alpha) * (delta - previous)
        previous, delta, value_before = delta, perturbations.project(moved, obs), value
        value, gradient = _evaluate(g, obs, delta, step=k + 1)
        rises, since = rises + (value > value_before), since + 1
        better = value > best_value
        best, best_gradient = where_rows(better, delta, best), where_rows(better, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        if k + 1 in ahead:
            stuck = (step_size == step_size_then).squeeze(-1) & (best_value == best_value_then)
            halve = (rises < _RHO * since) | stuck
            step_size_then, best_value_then = step_size, best_value
            step_size = where_rows(halve, step_size / 2, step_size)
            delta, gradient = where_rows(halve, best, delta), where_rows(halve, best_gradient, gradient)
            value = torch.where(halve, best_value, value)
            rises, since = torch.zeros_like(value), 0
    return best, best_value


def _evaluate(g: BoundObjective, obs: Tensor, delta: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
    value, gradient = value_and_gradient(g, obs, delta)
    check_finite(f"the objective of the attack at step {step}", value)
    check_finite(f"the gradient of the attack's objective at step {step}", gradient)
    return value, gradient
