"""The frozen observation filter of a victim, and perturbation sets as the network behind it sees them.

The filter is RLlib's MeanStdFilter to the last bit, without RLlib.
The policy network of a filtered run sees normalised observations, so ε is in units of this filter. A filter
that is skipped, or that keeps learning while the victim is evaluated, silently changes ε (ray issue 41382).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor

from marl_aajr.core.flat_observations import FlatBox
from marl_aajr.core.threat import Choices, PerturbationSet

SMALL = 1e-6
"""What RLlib adds to the standard deviation (`ray.rllib.utils.numpy.SMALL_NUMBER`)."""


@dataclass(frozen=True, eq=False)
class ObservationFilter:
    """Normalises observations with fixed statistics.

        y = clip((x − mean) / (std + 1e-6), −clip, clip)

    computed as RLlib does: `std + 1e-6` in float32, the rest in float64, the result in the dtype of x.

    Attributes:
        mean: float64, the shape of one observation.
        std: float32, the same shape.
        clip: bound of the result; None: none.

    Raises:
        ValueError: mean and std of different shapes, non-finite statistics, or a clip ≤ 0.
    """

    mean: Tensor
    std: Tensor
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise ValueError(
                f"expected mean and std of one shape, got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}; take both from the same filter"
            )
        object.__setattr__(self, "mean", self.mean.detach().to(torch.float64))
        object.__setattr__(self, "std", self.std.detach().to(torch.float32))
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std >= 0).all()):
            raise ValueError("expected a finite mean and a finite std ≥ 0, got others; the filter is broken")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"expected clip > 0 or None, got {self.clip}")

    @property
    def scale(self) -> Tensor:
        """The size of one unit of the result in units of the observation, float64."""
        return (self.std + SMALL).double()

    def __call__(self, obs: Tensor) -> Tensor:
        """Normalised observations, the shape and dtype of `obs [..., *shape]`."""
        y = (obs.double() - self.mean) / self.scale
        if self.clip is not None:
            y = y.clamp(-self.clip, self.clip)
        return y.to(obs.dtype)


def same_filter(a: ObservationFilter | None, b: ObservationFilter | None) -> bool:
    """Whether two filters, or none, do the same to every observation."""
    if a is None or b is None or a is b:
        return a is b
    return a.clip == b.clip and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)


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
    raw_scale = scale.new_tensor(1.0 if perturbations.scale is None else perturbations.scale)
    low = None if perturbations.low is None else (scale.new_tensor(perturbations.low) - mean) / scale
    high = None if perturbations.high is None else (scale.new_tensor(perturbations.high) - mean) / scale
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


def at_network(
    perturbations: PerturbationSet,
    space: gym.Space[Any],
    observed: ObservationFilter | None,
    *,
    units: Literal["raw", "network"],
) -> PerturbationSet:
    """A set of perturbations of an agent's observations, in the units of its network.

    Numbers that stand for integers or masks in an observation that was made flat are never perturbed, but by
    what changes choices.

    Args:
        perturbations: in `units`.
        space: the victim's space of the observations.
        observed: the frozen filter; None: none.
        units: `"raw"` (of the environment's observations) or `"network"` (behind the filter).
    """
    if isinstance(space, FlatBox) and not isinstance(perturbations, Choices):
        asked = perturbations.mask or space.free
        mask = tuple(wanted and free for wanted, free in zip(asked, space.free, strict=False))
        perturbations = replace(perturbations, mask=mask)
    return perturbations if units == "network" else through_filter(perturbations, observed)
