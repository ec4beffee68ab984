"""Where an ascent begins: at the observation itself, at a random point, or near the observation.

Objectives that are flat at δ = 0, such as the KL divergence, need a start off it, and one that arrives: s + δ
is rounded, feature by feature. A large feature, a timer of 2000, loses a δ of 10⁻⁴; those beside it do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.objectives import Objective
from marl_aajr.core.threat import PerturbationSet

Start = Literal["zero", "random"]
STARTS: tuple[Start, ...] = get_args(Start)

NUDGE = 0.01
"""Radius of a start near the observation, as a fraction of ε."""

_ROUNDING_UNITS = 16.0
"""A perturbation below this many rounding units of its feature is lost in it."""


def starting_point(
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    start: Start | Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """δ_0, `[B, ..., d]`; arguments as for `marl_aajr.core.ascent.ascend`."""
    if isinstance(start, Tensor):
        return perturbations.project(start.detach(), obs)
    if start is None:
        start = "random" if objective.flat_at_zero else "zero"
    one_of("start", start, STARTS)
    if start == "zero":
        if objective.flat_at_zero:
            raise ValueError(
                f"expected start='random' for {objective}, got 'zero'; its gradient vanishes at δ = 0"
            )
        return torch.zeros_like(obs)
    if generator is None:
        raise ValueError("expected a torch.Generator for a random start, got None; pass generator=")
    return perturbations.sample(obs, generator=generator)


def near_observations(perturbations: PerturbationSet, obs: Tensor, *, generator: torch.Generator) -> Tensor:
    """A random start in a hundredth of the set, so that steps still reach every corner, `[B, d]`.

    Where that is lost in the rounding of a row s, the row's start is in the whole set.
    """
    near = replace(perturbations, epsilon=NUDGE * perturbations.epsilon).sample(obs, generator=generator)
    lost = is_lost(near, rounding(obs)).unsqueeze(-1)
    return torch.where(lost, perturbations.project(near / NUDGE, obs), near)


def rounding(obs: Tensor) -> Tensor:
    """The |δ_i| that is lost in the rounding of each feature of an observation, `[B, ..., d]`."""
    return _ROUNDING_UNITS * torch.finfo(obs.dtype).eps * obs.abs()


def is_lost(delta: Tensor, rounded: Tensor) -> Tensor:
    """Whether nothing of δ arrives: every feature is lost in the `rounding` of s, `[B, ...]` bool.

    At s + δ = s the gradient of an objective that is flat there is 0 up to rounding, and the rounding
    depends on the processor and on how many rows it is given at a time.
    """
    return (delta.abs() <= rounded).all(-1)
