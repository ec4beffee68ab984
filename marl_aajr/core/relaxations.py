"""Lines below and above an activation on an interval: what bounds of a network are made of.

    a̲ x + b̲ ≤ σ(x) ≤ a̅ x + b̅        for l ≤ x ≤ u

Above a convex σ runs its chord and below it a tangent, at a concave one the other way round (Zhang 2018,
arXiv 1811.00866). An S-shaped σ is convex on the left of 0 and concave on the right; across 0 its line is the
tangent through the far end, or the chord where no point of the interval has such a tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_BISECTIONS = 12
_NARROW = 1e-12
"""Widths below which an interval is a point; the line is constant there."""


class Lines(NamedTuple):
    """Slopes and offsets of the line below and of the line above, each shaped as the interval's ends."""

    slope_below: Tensor
    offset_below: Tensor
    slope_above: Tensor
    offset_above: Tensor


@dataclass(frozen=True)
class Shape:
    """What there is to know of an increasing activation with slopes of at most 1.

    Attributes:
        derivative: σ'(x) of the layer, x and σ(x).
        convex: whether σ is convex everywhere; else it is S-shaped.
        fits: whether the layer's arguments leave it so.
    """

    derivative: Callable[[Any, Tensor, Tensor], Tensor]
    convex: bool
    fits: Callable[[Any], bool] = lambda layer: True


SHAPES: dict[type[nn.Module], Shape] = {
    nn.Tanh: Shape(lambda _, x, y: 1 - y.square(), convex=False),
    nn.Sigmoid: Shape(lambda _, x, y: y * (1 - y), convex=False),
    nn.ReLU: Shape(lambda _, x, y: (x > 0).to(x), convex=True),
    nn.LeakyReLU: Shape(
        lambda layer, x, y: torch.where(x > 0, torch.ones_like(x), layer.negative_slope),
        convex=True,
        fits=lambda layer: 0 <= layer.negative_slope <= 1,
    ),
    nn.ELU: Shape(
        lambda layer, x, y: torch.where(x > 0, 1.0, y + layer.alpha),
        convex=True,
        fits=lambda layer: 0 < layer.alpha <= 1,
    ),
    nn.Softplus: Shape(
        lambda layer, x, y: torch.sigmoid(layer.beta * x),
        convex=True,
        fits=lambda layer: layer.threshold >= 20,  # where it becomes x, it jumps by exp(−threshold)
    ),
}
"""The activations that can be bounded."""


def relax(layer: nn.Module, low: Tensor, high: Tensor) -> Lines:
    """The lines of an activation on [low, high], `[B, n]` each.

    For a gradient, the points that are searched for (of S-shaped σ, across 0) are constants: the lines hold
    wherever they touch.
    """
    shape = SHAPES[type(layer)]
    at_low, at_high = layer(low), layer(high)
    width = high - low
    narrow = width < _NARROW
    slope = torch.where(narrow, 0.0, (at_high - at_low) / torch.where(narrow, 1.0, width))
    chord = slope, at_low - slope * low
    chord_above = slope, torch.where(narrow, at_high, chord[1])
    middle = _tangent(layer, (low + high) / 2)
    if shape.convex:
        return Lines(*middle, *chord_above)
    # σ is odd about (0, σ(0)), so that what is above it is what is below it, turned round.
    concave, turned = low >= 0, high <= 0
    touching_above = _tangent(layer, _touching(layer, low, high))
    touching_below = _tangent(layer, -_touching(layer, -high, -low))
    above = _where(_reaches(touching_above, low, at_low, high, at_high), touching_above, chord_above)
    below = _where(_reaches(touching_below, high, at_high, low, at_low, below=True), touching_below, chord)
    above = _where(turned | narrow, chord_above, _where(concave, middle, above))
    below = _where(concave | narrow, chord, _where(turned, middle, below))
    return Lines(*below, *above)


def steepest(layer: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """The largest slope of an activation on [low, high]: at the end of a convex one, else nearest to 0."""
    shape = SHAPES[type(layer)]
    point = high if shape.convex else torch.minimum(torch.maximum(low, torch.zeros_like(low)), high)
    return shape.derivative(layer, point, layer(point))


Line = tuple[Tensor, Tensor]


def _tangent(layer: nn.Module, point: Tensor) -> Line:
    value = layer(point)
    slope = SHAPES[type(layer)].derivative(layer, point, value)
    return slope, value - slope * point


def _where(condition: Tensor, line: Line, other: Line) -> Line:
    return torch.where(condition, line[0], other[0]), torch.where(condition, line[1], other[1])


def _reaches(line: Line, end: Tensor, at_end: Tensor, *other: Tensor, below: bool = False) -> Tensor:
    """Whether a tangent bounds σ at both ends of the interval, as it does between them then."""
    sign = -1.0 if below else 1.0
    (other_end, at_other), (slope, offset) = other, line
    here = sign * (slope * end + offset - at_end) >= 0
    return here & (sign * (slope * other_end + offset - at_other) >= 0)


@torch.no_grad()
def _touching(layer: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """Where in [0, high] the tangent of an S-shaped σ goes through its point at low < 0, or just above it."""
    left, right = torch.zeros_like(high), high.clamp_min(0).clone()
    value = layer(low)
    for _ in range(_BISECTIONS):
        middle = (left + right) / 2
        slope, offset = _tangent(layer, middle)
        above = slope * low + offset >= value
        left, right = torch.where(above, left, middle), torch.where(above, middle, right)
    return right
