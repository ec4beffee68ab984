"""How fast directions that were kept go stale: their cosine with fresh ones at the same points."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.objectives import Objective
from marl_aajr.regularizers.sample import Sample

_ROWS = 128
"""Rows that are looked at, at most: a look costs a forward and a backward pass."""


def staleness(sample: Sample, objective: Objective, delta: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Mean cosine of unit directions `[B, ..., d]` with ∇g at s + δ, over rows that have both.

    `direction_cosine` is averaged over the minibatches of an update, `direction_cosine_min` the smallest.
    """
    some = sample.select(torch.arange(min(_ROWS, len(sample.obs))))
    delta, kept = delta[: len(some.obs)], kept[: len(some.obs)]
    g = objective.bind(some.policy, some.clean)
    _, v = value_and_gradient(g, some.obs, delta, mask=some.mask)
    lengths = torch.linalg.vector_norm(v, dim=-1)
    both = (lengths > torch.finfo(v.dtype).tiny) & (kept.square().sum(-1) > 0)
    cosine = (v * kept).sum(-1) / lengths.where(both, torch.inf)
    mean = cosine.sum() / both.sum().clamp_min(1)
    return {"direction_cosine": mean, "direction_cosine_min": mean}
