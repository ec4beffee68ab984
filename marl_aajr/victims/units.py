"""One physical ε for all victims: perturbation sets from units of the environment to those of a network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from marl_aajr.threat import PerturbationSet
from marl_aajr.victims.filters import ObservationFilter


def through_filter(perturbations: PerturbationSet, observed: ObservationFilter | None) -> PerturbationSet:
    """A set of raw perturbations as the network behind a filter sees it.

    With y = (x − mean) / scale, raw ‖δ_x / s‖ ≤ ε is ‖δ_y · scale / s‖ ≤ ε, so each feature's scale is
    divided by the filter's; bounds move along; and no perturbation passes the filter's clipping.

    Args:
        perturbations: in units of the environment's observations.
        observed: the frozen filter; None: the network sees the observations as they are.
    """
    if observed is None:
        return perturbations
    mean, scale = observed.mean.flatten(), observed.scale.flatten()
    raw_scale = torch.ones_like(scale) if perturbations.scale is None else _tensor(perturbations.scale)
    low = None if perturbations.low is None else (_tensor(perturbations.low) - mean) / scale
    high = None if perturbations.high is None else (_tensor(perturbations.high) - mean) / scale
    if observed.clip is not None:
        clip = torch.full_like(scale, observed.clip)
        low = -clip if low is None else torch.maximum(low, -clip)
        high = clip if high is None else torch.minimum(high, clip)
    return replace(
        perturbations,
        scale=tuple((raw_scale / scale).tolist()),
        low=None if low is None else tuple(low.tolist()),
        high=None if high is None else tuple(high.tolist()),
    )


def _tensor(values: float | tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
