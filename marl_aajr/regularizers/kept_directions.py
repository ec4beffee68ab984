"""Directions that were kept: which rows have them, and how fast they go stale."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.objectives import Objective
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers.sample import Sample

_ROWS = 128
"""Rows that are looked at, at most: a look costs a forward and a backward pass."""


def attacked_rows(sample: Sample, path: Tensor) -> tuple[Sample, Tensor, Tensor]:
    """The rows of a sample that were attacked, and where on their path.

    Args:
        sample: the minibatch.
        path: δ_t and u_t at some points of each row's path, `[B, ..., 2, points, d]`; else 0.

    Returns:
        The sample, in which only the rows with a direction at one of these points count; δ_t and u_t,
        `[points, B, ..., d]`, the latter as long as 1, or 0 where there is no direction.
    """
    deltas, kept = path.float().unbind(-3)
    lengths = torch.linalg.vector_norm(kept, dim=-1, keepdim=True)
    directions = kept / lengths.where(lengths > 0, torch.inf)  # as long as 1, whatever float16 made of it
    attacked = (lengths.squeeze(-1) > 0).any(-1)
    counted = attacked if sample.mask is None else attacked & sample.mask
    return replace(sample, mask=counted), deltas.movedim(-2, 0), directions.movedim(-2, 0)


def staleness(
    sample: Sample, objective: Objective, perturbations: PerturbationSet, delta: Tensor, kept: Tensor
) -> dict[str, Tensor]:
    """Mean cosine of kept unit directions with fresh ones at the same points, over rows that have both.

        cos(u, M ∇g(δ)),   M = mask · scale

    Of ∇g count the features in which u is not 0: a filter in the rollouts clips some, and nobody here knows.
    `direction_cosine` is averaged over the minibatches of an update, 0 where no row has both;
    `direction_cosine_min` is the smallest.

    Args:
        sample: the minibatch.
        objective: g.
        perturbations: the set of the ascent that kept them, for M.
        delta: δ, `[B, ..., d]`.
        kept: u, the same shape.
    """
    some = sample.select(torch.arange(min(_ROWS, len(sample.obs))))
    delta, kept = delta[: len(some.obs)], kept[: len(some.obs)]
    g = objective.bind(some.policy, some.clean)
    _, v = value_and_gradient(g, some.obs, delta, mask=some.mask)
    if (preconditioner := perturbations.preconditioner(v)) is not None:
        v = v * preconditioner
    v = v.where(kept != 0, 0.0)
    lengths = torch.linalg.vector_norm(v, dim=-1)
    both = (lengths > torch.finfo(v.dtype).tiny) & (kept.square().sum(-1) > 0)
    cosine = (v * kept).sum(-1) / lengths.where(both, torch.inf)
    mean = cosine.sum() / both.sum().clamp_min(1)
    return {"direction_cosine": mean, "direction_cosine_min": torch.where(both.any(), mean, 1.0)}
