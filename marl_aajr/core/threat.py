"""The threat model: which perturbations of an observation the adversary may choose.

    Δ(s) = { δ : ‖δ / scale‖_p ≤ ε,  δ_i = 0 where mask_i = 0,  low ≤ s + δ ≤ high }

with p = ∞ or 2. Where s itself lies outside its bounds, the bound is widened to s: δ = 0 always belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from marl_aajr.core.balls import check_bounds, feature_values, in_ball, project_ellipsoid
from marl_aajr.core.channels import check_channel_names
from marl_aajr.core.checks import one_of, whole
from marl_aajr.core.seeds import Randomness, drawn

Norm = Literal["linf", "l2"]
SetNorm = Literal["linf", "l2", "words"]
"""A norm, or what is counted: `marl_aajr.core.word_budget.WordBudget`."""
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class PerturbationSet:
    """A ball of radius ε around every observation, with optional mask, scale and bounds.

    Attributes:
        epsilon: radius ε > 0, in the units that the policy network sees (times `scale`).
        norm: `"linf"` (every feature moves by at most ε · scale_i) or `"l2"`.
        mask: per feature, whether the adversary can touch it; None: all.
        scale: per feature, the size of one unit, > 0; None: 1.
        low: lower bound of `s + δ`, a number or one per feature; None: none.
        high: upper bound of `s + δ`; None: none.
        block: e, where an observation is a row of vectors of e features, such as the embeddings of words: ε
            is the radius of each vector, and mask and scale may have one value for each of them, too. None:
            that of the policy (`Policy.block`), which for most is a vector as a whole.
        channels: names of the features that the adversary can touch. An environment says which they are
            (`marl_aajr.core.channels.held`), and until then the set cannot be used; None: all.
    """

    epsilon: float
    norm: Norm = "linf"
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    block: int | None = None
    channels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(
                f"expected a finite epsilon > 0, got {self.epsilon}; for no perturbation use no attack "
                "and no regularizer"
            )
        one_of("norm", self.norm, get_args(Norm))
        self._check_limits()

    def _check_limits(self) -> None:
        for name in ("mask", "scale", "low", "high", "channels"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float | str):
                object.__setattr__(self, name, tuple(value))
        if self.mask is not None and not any(self.mask):
            raise ValueError("expected a mask that leaves the adversary a feature, got all False")
        if self.scale is not None and min(self.scale) <= 0:
            raise ValueError(f"expected scales > 0, got {min(self.scale)}; use mask to fix a feature")
        check_channel_names(self.channels)
        check_bounds(self.low, self.high)
        if self.block is not None:
            whole("block", self.block)

    def fitting(self, block: int | None) -> Self:
        """The set with this `block`, where it has none of its own."""
        return self if block is None or self.block is not None else replace(self, block=block)

    @property
    def _unlimited(self) -> bool:
        limits = (self.mask, self.scale, self.low, self.high, self.channels)
        return all(limit is None for limit in limits)

    @property
    def is_cube(self) -> bool:
        """Whether it is ‖δ‖_∞ ≤ ε and nothing else."""
        return self.norm == "linf" and self._unlimited

    def radius(self, like: Tensor, factor: float = 1.0) -> Any:
        """`factor` · ε: a number, or of `PerturbationSets` one for each row, `[B, 1]`, as `like`."""
        return factor * self.epsilon

    def select(self, index: Tensor | slice) -> PerturbationSet:
        """The set of the rows `index` only."""
        return self

    def repeat(self, count: int) -> PerturbationSet:
        """The set for `count` copies of the batch, one after the other."""
        return self

    def preconditioner(self, like: Tensor) -> Tensor | None:
        """M = mask · scale as `[d]`, or None where it is the identity."""
        mask = self.free(like)
        scale = None if self.scale is None else self._features(self.scale, "scale", like)
        if mask is None or scale is None:
            return scale if mask is None else mask
        return mask * scale

    def size(self, delta: Tensor) -> Tensor:
        """‖δ / scale‖ in the set's norm, the largest of its blocks, `[...]`."""
        scaled = delta if self.scale is None else delta / self._features(self.scale, "scale", delta)
        if self.norm == "linf":
            return scaled.abs().amax(-1)
        if self.block is None:
            return torch.linalg.vector_norm(scaled, dim=-1)
        return torch.linalg.vector_norm(self._blocks(scaled), dim=-1).amax(-1)

    def contains(self, delta: Tensor, obs: Tensor) -> Tensor:
        """Whether δ lies in Δ(obs), up to rounding, `[...]` bool; False for non-finite rows."""
        radius = self.radius(delta)
        size = self.size(delta)
        inside = size <= (radius.squeeze(-1) if isinstance(radius, Tensor) else radius) * (1 + _TOLERANCE)
        if (free := self.free(delta)) is not None:
            inside &= (delta * (1 - free) == 0).all(-1)
        for bound, sign in zip(self._interval(obs), (-1, 1), strict=True):
            if bound is not None:
                inside &= (sign * (delta - bound) <= _TOLERANCE * radius).all(-1)
        return inside

    def project(self, delta: Tensor, obs: Tensor) -> Tensor:
        """Π_Δ(δ): the nearest point of Δ(obs) in the Euclidean norm, `[..., d]`.

        L∞ is one clamp. For L2 with bounds or scale the projection is
        `δ_i = clamp(x_i / (1 + μ / scale_i²), low_i, high_i)` with the multiplier μ ≥ 0 by bisection
        (clipping to the ball and then to the box would not be the projection).
        """
        if self.norm == "linf":
            if self._unlimited:
                radius = self.radius(delta)
                return delta.clamp(-radius, radius)
            return delta.clamp(*self.box(obs))
        (low, high), radius = self._interval(obs), self.radius(delta)
        if (free := self.free(delta)) is not None:
            delta = delta * free
        if self.block is not None:
            delta = self._blocks(delta)
            radius = radius.unsqueeze(-1) if isinstance(radius, Tensor) else radius
        if low is None and high is None and self.scale is None:
            norm = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
            nearest = delta * (radius / norm.clamp_min(radius))
        else:
            scale = self._blocks(self._features(1.0 if self.scale is None else self.scale, "scale", obs))
            low, high = (None if bound is None else self._blocks(bound) for bound in (low, high))
            nearest = project_ellipsoid(delta, low, high, scale=scale, radius=radius)
        return nearest if self.block is None else nearest.flatten(-2)

    def semi_axes(self, like: Tensor) -> Tensor:
        """ε · mask · scale, the furthest that each feature moves, `[d]` or of each row `[..., d]`."""
        preconditioner = self.preconditioner(like)
        one = torch.ones_like(like[..., :1])
        axes: Tensor = self.radius(like) * (one if preconditioner is None else preconditioner)
        return axes

    def box(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest δ of each feature, to be broadcast; in L2 the box around the ball."""
        (low, high), axes = self._interval(obs), self.semi_axes(obs)
        lower = -axes if low is None else torch.maximum(low, -axes)
        return lower, axes if high is None else torch.minimum(high, axes)

    def sample(self, obs: Tensor, *, generator: Randomness) -> Tensor:
        """A random point: uniform in the ball (masked, scaled), then projected onto the bounds."""
        return self._scaled(drawn(obs, self._unit, generator=generator), obs)

    def _unit(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """A random point of the unit ball."""
        if self.norm == "linf":
            return torch.empty_like(like).uniform_(-1, 1, generator=generator)
        unit, mask = torch.empty_like(like).normal_(generator=generator), self.free(like)
        if mask is not None:
            unit = unit * mask
        if self.block is not None:
            # A block that is held as a whole has length 0.
            free = None if mask is None else self._blocks(mask.expand_as(like)).sum(-1).clamp_min(1)
            return in_ball(
                self._blocks(unit), self.block if free is None else free, generator=generator
            ).flatten(-2)
        return in_ball(unit, like.shape[-1] if self.mask is None else sum(self.mask), generator=generator)

    def _blocks(self, features: Tensor) -> Tensor:
        """`[..., d]` as `[..., d / e, e]`, where the set has blocks; a number stays one."""
        return (
            features if self.block is None or not features.ndim else features.unflatten(-1, (-1, self.block))
        )

    def _features(self, values: float | Sequence[float], name: str, like: Tensor) -> Tensor:
        """Values for the features of an observation: one for all, or for each, or for each block."""
        several = not isinstance(values, int | float)
        if several and self.block is not None and len(values) * self.block == like.shape[-1]:  # type: ignore[arg-type]
            values = tuple(value for value in values for _ in range(self.block))  # type: ignore[union-attr]
        return feature_values(values, name, like)

    def squash(self, action: Tensor, obs: Tensor) -> Tensor:
        """The perturbation that a learned adversary's action in [−1, 1]^d stands for, `[..., d]`.

            δ = Π_Δ(ε M · clamp(a, −1, 1))

        Every point of Δ(obs) can be reached, and actions beyond ±1 (a Gaussian policy draws them) are those
        at ±1. In L∞ without bounds it is `ε · hardtanh(a)`, as in Zhang et al. 2021 (arXiv 2101.08452).
        """
        return self._scaled(action.clamp(-1, 1), obs)

    def free(self, like: Tensor) -> Tensor | None:
        """1 for the features that can be touched, else 0, `[d]`; None: all can."""
        if self.channels is not None:
            raise ValueError(
                f"expected to know which features {', '.join(self.channels)} are, got the names alone; play "
                "in an environment that has these channels, or give a mask"
            )
        return None if self.mask is None else self._features(self.mask, "mask", like)

    def _scaled(self, unit: Tensor, obs: Tensor) -> Tensor:
        if (preconditioner := self.preconditioner(obs)) is not None:
            unit = unit * preconditioner
        return self.project(self.radius(obs) * unit, obs)

    def _interval(self, obs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Bounds of δ, widened to contain 0."""
        low = None if self.low is None else (self._features(self.low, "low", obs) - obs).clamp_max(0)
        high = None if self.high is None else (self._features(self.high, "high", obs) - obs).clamp_min(0)
        return low, high


@dataclass(frozen=True, kw_only=True)
class Unlimited(PerturbationSet):
    """The set of what is no ball, such as a broken sensor: all but these limits.

        Δ(s) = { δ : δ_i = 0 where mask_i = 0,  low ≤ s + δ ≤ high }

    The norm and the scale say nothing here.
    """

    epsilon: float = field(default=inf, repr=False)

    def __post_init__(self) -> None:
        if self.epsilon != inf or self.norm != "linf":
            raise ValueError(
                f"expected neither epsilon nor norm of what has no size, got {self.epsilon} in {self.norm}"
            )
        self._check_limits()

    def contains(self, delta: Tensor, obs: Tensor) -> Tensor:
        distance = (delta - self.project(delta, obs)).abs()
        return delta.isfinite().all(-1) & (distance <= _TOLERANCE * (1 + obs.abs())).all(-1)

    def project(self, delta: Tensor, obs: Tensor) -> Tensor:
        if (free := self.free(delta)) is not None:
            delta = delta * free
        low, high = self._interval(obs)
        return delta if low is high is None else delta.clamp(low, high)


@dataclass(frozen=True, kw_only=True)
class Choices(Unlimited):
    """The set of what changes one-hot choices, also where these stand for integers that no ball reaches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbationSets(PerturbationSet):
    """A set for each row of a batch, which differ in their radius.

    Attributes:
        epsilon: ε of each row, `[B, 1]`, > 0; not checked. In double precision, its multiples are rounded
            as those of a number are.
    """

    epsilon: Tensor  # type: ignore[assignment]

    def __post_init__(self) -> None:
        return

    @classmethod
    def of(cls, perturbations: PerturbationSet, epsilon: Tensor) -> PerturbationSets:
        """The set with other radii."""
        return cls(**{**vars(perturbations), "epsilon": epsilon})

    def radius(self, like: Tensor, factor: float = 1.0) -> Tensor:
        return (factor * self.epsilon).to(like)

    def select(self, index: Tensor | slice) -> PerturbationSets:
        return self.of(self, self.epsilon[index])

    def repeat(self, count: int) -> PerturbationSets:
        return self.of(self, self.epsilon.repeat(count, 1))
