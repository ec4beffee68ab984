"""Geometry of perturbation sets: random points of L2 balls, projections on ellipsoids, values of features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_BISECTIONS = 60


def check_bounds(low: float | tuple[float, ...] | None, high: float | tuple[float, ...] | None) -> None:
    """Raise `ValueError` where a lower bound, a number or one per feature, is above the upper one."""
    if low is None or high is None:
        return
    pair = [end if isinstance(end, tuple) else (end,) for end in (low, high)]
    least, most = (end * max(map(len, pair)) if len(end) == 1 else end for end in pair)
    if any(x > y for x, y in zip(least, most, strict=False)):
        raise ValueError(f"expected low ≤ high, got {low} and {high}; swap them")


def in_ball(normal: Tensor, free: Tensor | int, *, generator: torch.Generator) -> Tensor:
    """Uniform in the unit ball, from normal numbers `[..., d]`; 0 where these are.

    Args:
        normal: zero in features that are fixed.
        free: the number of the others, `[...]`.
        generator: source of the lengths.
    """
    radius = torch.empty(normal.shape[:-1], dtype=normal.dtype, device=normal.device)
    radius = radius.uniform_(generator=generator).pow(1 / free).unsqueeze(-1)
    length = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    return radius * normal / length.clamp_min(torch.finfo(normal.dtype).tiny)


def project_ellipsoid(
    x: Tensor, low: Tensor | None, high: Tensor | None, *, scale: Tensor, radius: Any
) -> Tensor:
    """The nearest point to x of ‖y / scale‖₂ ≤ radius, low ≤ y ≤ high, by bisection, `[..., d]`."""

    def at(multiplier: Tensor) -> Tensor:
        point = x / (1 + multiplier / scale.square())
        return point if low is high is None else point.clamp(low, high)

    def too_long(point: Tensor) -> Tensor:
        return torch.linalg.vector_norm(point / scale, dim=-1, keepdim=True) > radius

    # ‖x/(1 + μ/s²) / s‖ ≤ max(s) ‖x‖ / μ: at this μ the point is inside the ball.
    upper = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * scale.amax() / radius
    lower = torch.zeros_like(upper)
    upper = torch.where(too_long(at(lower)), upper, 0)
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        outside = too_long(at(middle))
        lower, upper = torch.where(outside, middle, lower), torch.where(outside, upper, middle)
    return at(upper)


def feature_values(values: float | Sequence[float], name: str, like: Tensor) -> Tensor:
    """Values for features as a tensor, `[d]` or of one number, in the precision of `like`."""
    tensor = _constant(values if isinstance(values, float | int) else tuple(values), like.dtype, like.device)
    if tensor.ndim and tensor.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"expected {like.shape[-1]} features in {name}, got {tensor.shape[-1]}; "
            "give one value per observation feature"
        )
    return tensor


@lru_cache(maxsize=256)
def _constant(values: float | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept per device, so that no minibatch copies a constant to the accelerator again."""
    return torch.tensor(values, dtype=dtype, device=device)
