"""Bounds on what an MLP can say while its input moves within a perturbation set.

    C f(s + δ) ≥ p   for all δ ∈ Δ(s)

`interval`  the values of every layer on their own (IBP, Gowal 2018, arXiv 1810.12715); the last activation's
            go through C and the layers behind it as one product, so that what two outputs share cancels.
`crown`     the product goes on backwards through lines below and above each activation, down to the input
            (CROWN, Zhang 2018, arXiv 1811.00866); so do the bounds on what goes into each activation.
`crown_ibp` the same backwards, with the intervals of IBP (Zhang 2020, arXiv 1906.06316): cheaper and looser.

On a ball in L2 the last step is the ball's own, ‖a ⊙ axes‖₂; with limits on the input as well it is the
better one of ball and box. Everything has a gradient by the weights.

The library `bound-propagation` (0.4.7) checks this file in its tests and is not used beside them: it is under
the GPL, its bounds in L2 are wrong (it takes the dual norm of 2 for −2), what it relaxes has no gradient, and
it knows neither masks of a ball nor rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from marl_aajr.core.mlp import hooked, opened
from marl_aajr.core.relaxations import SHAPES, Lines, relax, steepest
from marl_aajr.core.threat import PerturbationSet

BoundMethod = Literal["interval", "crown", "crown_ibp"]
BOUND_METHODS: tuple[BoundMethod, ...] = get_args(BoundMethod)

_PASSED = (nn.Identity, nn.Flatten)
_ACTIVATION_ROUNDINGS = 16
"""Units of rounding within which an activation of single precision is right; the tests say so."""


@dataclass(frozen=True)
class Region:
    """Where the inputs of B rows may be: a box, and an ellipsoid about `centre` where it has `axes`.

    Attributes:
        low: of each feature, `[B, d]`.
        high: of each feature, `[B, d]`.
        centre: s, `[B, d]`.
        axes: semi-axes of the ellipsoid, to be broadcast to `[B, d]`; None: there is only the box.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    axes: Tensor | None = None

    @classmethod
    def of(cls, perturbations: PerturbationSet, obs: Tensor) -> Region:
        """s + Δ(s) of observations `[B, d]`."""
        low, high = perturbations.box(obs)
        axes = perturbations.semi_axes(obs) if perturbations.norm == "l2" else None
        return cls(obs + low, obs + high, obs, axes)

    def widened(self, unit: float) -> Region:
        """The region with all that rounding to numbers of this unit can make of its points."""
        reach = 8 * unit * torch.maximum(self.low.abs(), self.high.abs())
        reach = reach.where(self.high > self.low, 0.0)
        axes = None if self.axes is None else self.axes * (1 + 8 * unit * reach.shape[-1]) + reach
        return Region(self.low - reach, self.high + reach, self.centre, axes)

    def ends(self, slope: Tensor, offset: Tensor) -> Ends:
        """Bounds of `slope · x + offset`, `[B, k, d]` or `[k, d]`, and `[B, k]` or `[k]`, `[B, k]` each."""
        ends = Ends(self.low, self.high).ends(slope, offset)
        if self.axes is None:
            return ends
        middle = _times(slope, self.centre) + offset
        length = torch.linalg.vector_norm(slope * self.axes.unsqueeze(-2), dim=-1)
        return Ends(torch.maximum(ends.low, middle - length), torch.minimum(ends.high, middle + length))


@dataclass(frozen=True)
class Ends:
    """Bounds of values, `[B, n]` each."""

    low: Tensor
    high: Tensor

    def ends(self, slope: Tensor, offset: Tensor) -> Ends:
        """As of a `Region`."""
        middle = _times(slope, (self.low + self.high) / 2) + offset
        spread = _times(slope.abs(), (self.high - self.low) / 2)
        return Ends(middle - spread, middle + spread)


class BoundedMLP:
    """Linear layers and increasing activations, as a function with bounds.

    Args:
        layers: the layers in their order, of `SHAPES` and Linear, Identity and Flatten.
        dtype: of the computation; None: of the weights themselves, which then get a gradient.

    Attributes:
        width: the number m of outputs.

    Raises:
        ValueError: another layer, which is named.
    """

    def __init__(self, layers: Sequence[nn.Module], *, dtype: torch.dtype | None = None) -> None:
        self.steps: list[tuple[Tensor, Tensor | None] | nn.Module] = []
        for place, layer in enumerate(layers):
            if type(layer) is nn.Linear and not hooked(layer):
                bias = None if layer.bias is None else layer.bias.to(dtype or layer.bias.dtype)
                self.steps.append((layer.weight.to(dtype or layer.weight.dtype), bias))
            elif type(layer) in SHAPES and SHAPES[type(layer)].fits(layer) and not hooked(layer):
                self.steps.append(layer)
            elif type(layer) not in _PASSED or hooked(layer):
                kinds: tuple[type[nn.Module], ...] = (nn.Linear, *SHAPES, *_PASSED)
                known = ", ".join(kind.__name__ for kind in kinds)
                raise ValueError(
                    f"expected layers that can be bounded ({known}), without hooks, slopes from 0 to 1, "
                    f"got {layer} in place {place}; attack this policy, or smooth it"
                )
        linear = [step[0] for step in self.steps if isinstance(step, tuple)]
        if not linear:
            raise ValueError("expected a network with Linear layers to bound, got one without")
        self.width = linear[-1].shape[0]

    @classmethod
    def of(cls, network: object, *, dtype: torch.dtype | None = None) -> BoundedMLP:
        """The bounded form of a network; `ValueError`: it has none, and the layer is named."""
        if not isinstance(network, nn.Module):
            raise ValueError(f"expected a stack of layers to bound, got a {type(network).__name__}")
        if type(network) is nn.Sequential and hooked(network):
            raise ValueError("expected a network without hooks to bound, got one that has some")
        return cls(list(opened(network)), dtype=dtype)

    def outputs(self, region: Region, method: BoundMethod) -> Ends:
        """Bounds of each output, `[B, m]` each."""
        return self._each(region, len(self.steps), self._inner(region, method), method)

    def ends(self, region: Region, combination: Tensor, method: BoundMethod) -> Ends:
        """Bounds of C f, `[B, k, m] -> [B, k]`; C may be that of all rows, `[k, m]`."""
        return self._ends(region, combination, len(self.steps), self._inner(region, method), method)

    def least(self, region: Region, combination: Tensor, method: BoundMethod) -> Tensor:
        """The lower ones alone."""
        inner = self._inner(region, method)
        return self._below(region, combination, len(self.steps), inner, method).low

    def rounding(self, region: Region, unit: float) -> Tensor:
        """How far a pass with numbers of this unit may be from the outputs of exact arithmetic, `[B, m]`.

        With n terms in a sum, in whatever order, |fl(W h) − W h| ≤ γ |W| |h|, γ = (n + 2) unit (Higham 2002,
        section 3.1); an activation passes errors on by its slope at most, and adds 16 units of its own.
        """
        inner = self._inner(region, "interval")
        size, error = torch.maximum(region.low.abs(), region.high.abs()), torch.zeros_like(region.low)
        for place, step in enumerate(self.steps):
            if isinstance(step, tuple):
                weight, bias = step[0].abs(), step[1]
                size = size @ weight.T + (0.0 if bias is None else bias.abs())
                error = error @ weight.T + 1.01 * unit * (weight.shape[1] + 2) * size
            else:
                ends = inner[place]
                size = torch.maximum(step(ends.low).abs(), step(ends.high).abs())
                error = steepest(step, ends.low - error, ends.high + error) * error
                error = error + _ACTIVATION_ROUNDINGS * unit * size.clamp_min(1.0)
                size = size + error
        return error

    def _inner(self, region: Region, method: BoundMethod) -> dict[int, Ends]:
        """Bounds of what goes into each activation, by its place."""
        inner: dict[int, Ends] = {}
        for place, step in enumerate(self.steps):
            if not isinstance(step, tuple):
                inner[place] = ends = self._each(region, place, inner, "interval")
                if method == "crown" and len(inner) > 1:
                    other = self._each(region, place, inner, method)
                    low, high = torch.maximum(ends.low, other.low), torch.minimum(ends.high, other.high)
                    inner[place] = Ends(low, high)
        return inner

    def _each(self, region: Region, place: int, inner: dict[int, Ends], method: BoundMethod) -> Ends:
        """Bounds of the values before a step, each on its own."""
        before = [step[0] for step in self.steps[:place] if isinstance(step, tuple)]
        each = torch.eye(len(before[-1]) if before else region.low.shape[-1]).to(region.low)
        return self._ends(region, each, place, inner, method)

    def _ends(
        self, region: Region, slope: Tensor, place: int, inner: dict[int, Ends], method: BoundMethod
    ) -> Ends:
        """Bounds of `slope` times the values before a step."""
        ends = self._below(region, slope, place, inner, method)
        if method == "interval" or not any(back < place for back in inner):
            return ends
        return Ends(ends.low, -self._below(region, -slope, place, inner, method).low)

    def _below(
        self, region: Region, slope: Tensor, place: int, inner: dict[int, Ends], method: BoundMethod
    ) -> Ends:
        """The same, of which the upper ones hold only where no line is taken on the way."""
        offset = slope.new_zeros(slope.shape[:-1])
        for back in range(place - 1, -1, -1):
            step = self.steps[back]
            if isinstance(step, tuple):
                weight, bias = step
                offset = offset if bias is None else offset + slope @ bias
                slope = slope @ weight
                continue
            ends = inner[back]
            if method == "interval":
                return Ends(step(ends.low), step(ends.high)).ends(slope, offset)
            slope, offset = _through(relax(step, ends.low, ends.high), slope, offset)
        return region.ends(slope, offset)


def _through(lines: Lines, slope: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """What is nowhere above `slope · σ(x) + offset`, as slopes and offsets by x."""
    up, down = slope.clamp_min(0), slope.clamp_max(0)
    offset = offset + _times(up, lines.offset_below) + _times(down, lines.offset_above)
    return up * lines.slope_below.unsqueeze(-2) + down * lines.slope_above.unsqueeze(-2), offset


def _times(slope: Tensor, x: Tensor) -> Tensor:
    """`[B, k, n]` or `[k, n]` times `[B, n]`, `[B, k]`."""
    return x @ slope.T if slope.ndim == 2 else (slope @ x.unsqueeze(-1)).squeeze(-1)
