"""The gradient of a plain MLP by its weights, written out, with σ in the place of tanh.

In the symbols of `marl_aajr.core.folded_mlp`, from the gradient δ by a layer's outputs y:

    ∂W = α δ sᵀ + β (Σ δ) 1ᵀ        ∂b = Σ δ

The factors are multiplied into the weights, which are small: between two products only φ or φ' remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from marl_aajr.core.folded_mlp import IDENTITY, UNITS
from marl_aajr.core.products import product
from marl_aajr.rllib.internals.cores import own_cores

_A = TypeVar("_A")
_B = TypeVar("_B")


class MLPGradient:
    """Forward and backward pass of a plain MLP; the gradient by its weights goes into given buffers.

    Args:
        layers: Of a `PlainMLP`.
        gradients: A buffer for each of its parameters.
    """

    def __init__(self, layers: Sequence[nn.Module], gradients: Mapping[Tensor, Tensor]) -> None:
        self._layers = [
            (layer.weight, layer.bias, gradients[layer.weight], gradients.get(layer.bias))
            for layer in layers[::2]
            if isinstance(layer, nn.Linear)
        ]
        # What each layer reads is of the unit before it; the last one's outputs are of none.
        self._units = [IDENTITY, *(UNITS[type(layer)] for layer in layers[1::2]), IDENTITY]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs `[N, m]` of inputs `[N, d]`, and for `backward` what every layer read."""
        seen = []
        for i, (weight, bias, *_) in enumerate(self._layers):
            seen.append(x)
            before, unit = self._units[i : i + 2]
            shift = bias if bias is None else bias * unit.gain
            if before.offset:
                beside = weight.sum(1).mul_(unit.gain * before.offset)
                shift = beside if shift is None else shift + beside
            x = product(x, weight, shift, factor=unit.gain * before.slope)
            unit.apply(x)
        return x, seen

    def backward(self, delta: Tensor, seen: Sequence[Tensor]) -> None:
        """Fills the buffers, from the gradient by the outputs `[N, m]`."""
        for i in range(len(self._layers) - 1, -1, -1):
            (weight, _, by_weight, by_bias), before = self._layers[i], self._units[i]
            total = torch.sum(delta, 0) if by_bias is None else torch.sum(delta, 0, out=by_bias)
            rows = product(delta.t(), seen[i].t(), factor=before.slope)
            torch.add(rows, total.unsqueeze(1), alpha=before.offset, out=by_weight)
            if i > 0:
                delta = product(delta, weight.t(), factor=before.rate)
                before.pull(delta, seen[i])


class SideBySide:
    """Two passes at the same time where a core is free and they are long: to the same numbers.

    Neither of two threads waits busily for the other, unlike the threads of one product.

    Args:
        device: The device of the passes; an accelerator overlaps them by itself.
    """

    LEAST_WORK: ClassVar[int] = 2**25
    """Multiplications below which handing a pass over takes longer than it saves."""

    def __init__(self, device: torch.device) -> None:
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cpu" and own_cores() > 1:
            self._thread = ThreadPoolExecutor(
                1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
            )

    def __call__(self, first: Callable[[], _A], second: Callable[[], _B], work: int) -> tuple[_A, _B]:
        """What both return; `work` are the multiplications of each. No graph is recorded."""
        if self._thread is None or work < self.LEAST_WORK:
            return first(), second()
        beside = self._thread.submit(torch.no_grad()(second))
        return first(), beside.result()
