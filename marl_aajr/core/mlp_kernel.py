"""Plain MLPs by a compiled kernel: a whole pass through small layers in one call.

Between the products of a network of 64 units PyTorch spends as much time as in them. `mlp_kernel.cpp` makes
a pass in one call, block of rows by block of rows: see `marl_aajr.core.compiled`. In double precision, on
accelerators and without a compiler PyTorch serves, to the same numbers but for rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marl_aajr.core.compiled import compiled

_MOST_LAYERS = 16
_ACTIVATIONS: Mapping[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2}


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int64),
        ("widths", ctypes.c_void_p),
        ("activations", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
    )


class MLPKernel:
    """The passes of one MLP, with its weights as they were when they were last packed.

    Args:
        layers: linear layers of a `PlainMLP`, with an activation after each but the last.

    Raises:
        ValueError: the kernel does not serve here; see `serves`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        library = _library()
        if library is None or not self.serves(layers):
            raise ValueError("expected float32 weights on the CPU and a C++ compiler; use PlainMLP")
        self._library, self._layers = library, list(layers)
        self._linear = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
        count = len(self._linear)
        widths = [self._linear[0].in_features, *(layer.out_features for layer in self._linear)]
        kinds = [*(_ACTIVATIONS[type(layer)] for layer in layers[1::2]), 0]
        self.width, self.outputs = widths[0], widths[-1]
        self._kept = ((ctypes.c_int64 * (count + 1))(*widths), (ctypes.c_int32 * count)(*kinds))
        self._weights, self._biases = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)()
        arrays = (*self._kept, self._weights, self._biases)
        self._shapes = [layer.weight.shape for layer in self._linear]
        self._network = _Network(count, *(ctypes.addressof(array) for array in arrays))
        self._net = ctypes.byref(self._network)
        self._packed = torch.empty(library.packed_floats(self._net))
        self._hidden = library.hidden_floats(self._net)
        self.pack()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layers,)

    @classmethod
    def serves(cls, layers: Sequence[nn.Module]) -> bool:
        """Whether the layers are in single precision on the CPU, and the kernel can be had."""
        tensors = [tensor for layer in layers for tensor in layer.parameters(recurse=False)]
        fit = len(layers[::2]) <= _MOST_LAYERS and all(map(_readable, tensors))
        return fit and _library() is not None

    def pack(self) -> bool:
        """Takes the weights as they are now; False where they became others than the kernel was made for."""
        for i, (layer, shape) in enumerate(zip(self._linear, self._shapes, strict=True)):
            weight, bias = layer.weight, layer.bias
            if weight.shape != shape or not _readable(weight):
                return False
            if bias is not None and not (bias.shape == shape[:1] and _readable(bias)):
                return False
            self._weights[i] = weight.data_ptr()
            self._biases[i] = None if bias is None else bias.data_ptr()
        self._library.pack(self._net, self._packed.data_ptr())
        return True

    def takes(self, x: Tensor) -> bool:
        """Whether inputs are such as the kernel reads, `[N, d]`."""
        return x.ndim == 2 and x.shape[1] == self.width and _plain(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs `[N, m]` of inputs `[N, d]`; without a graph."""
        return self._forward(x.contiguous(), None)

    def forward(self, x: Tensor) -> KernelPass:
        """The same, and what its derivatives are made of."""
        x = x.contiguous()
        hidden = x.new_empty(len(x) * self._hidden)
        return KernelPass(self, x, hidden, self._forward(x, hidden))

    def push(self, x: Tensor, direction: Tensor) -> KernelTangents:
        """f(x) and J(x) u of `x [N, d]` and `u [N, d]`, and what their derivatives are made of."""
        x, direction = x.contiguous(), _like(direction, len(x), self.width)
        hidden, tangents = x.new_empty(2, len(x) * self._hidden)
        outputs, along = x.new_empty(2, len(x), self.outputs)
        made = KernelTangents(self, x, direction, hidden, tangents, outputs, along)
        self._library.push(*self._addresses(x, direction, outputs, along, hidden, tangents))
        return made

    def _addresses(self, x: Tensor, *more: Tensor) -> tuple[Any, ...]:
        """The first arguments of the passes."""
        return self._net, self._packed.data_ptr(), len(x), *(each.data_ptr() for each in (x, *more))

    def backward(self, made: KernelPass, delta: Tensor, *places: Any) -> None:
        """The kernel's backward pass; `places`: of gradients by weights, biases and inputs, or None."""
        delta = _like(delta, len(made.x), self.outputs)
        self._library.backward(*self._addresses(made.x, made.hidden, delta), *places)

    def pull(self, made: KernelTangents, by_outputs: Tensor, by_along: Tensor, *places: Any) -> None:
        """The same through `push`; the last place is of gradients by the directions."""
        kept = (made.x, made.direction, made.hidden, made.tangents)
        gradients = (_like(each, len(made.x), self.outputs) for each in (by_outputs, by_along))
        self._library.pull(*self._addresses(*kept, *gradients), *places)

    def climb(
        self, x: Tensor, radii: Tensor, sizes: Tensor, *, steps: int, keep_path: bool
    ) -> tuple[Tensor, ...]:
        """An ascent by signs on the margin of the action that is greedy at `x [n, d]`, from δ_0 = 0.

        Args:
            x: inputs `[n, d]`.
            radii: of the L∞ ball around each row, `[n]`.
            sizes: η of each row, `[n]`.
            steps: K ≥ 1.
            keep_path: whether points and gradients are kept.

        Returns:
            δ_K `[n, d]`, the outputs at x `[n, m]`, the margins `[K, n]` at δ_0 … δ_{K−1}, and if they are
            kept, δ_0 … δ_{K−1} and the gradients there, `[K, n, d]`.
        """
        x, count = x.contiguous(), len(x)
        radii, sizes = (_like(each.reshape(count, 1), count, 1) for each in (radii, sizes))
        outputs, margins = x.new_empty(count, self.outputs), x.new_empty(steps, count)
        path = tuple(x.new_empty(steps, *x.shape) for _ in range(2 * keep_path))
        found = (torch.empty_like(x), outputs, margins, *path)
        places = [each.data_ptr() for each in found] + [None] * (2 - len(path))
        self._library.climb(*self._addresses(x, radii, sizes), steps, *places)
        return found

    def _forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        out = x.new_empty(len(x), self.outputs)
        kept = None if hidden is None else hidden.data_ptr()
        self._library.forward(*self._addresses(x, out), kept)
        return out


@dataclass(frozen=True)
class KernelPass:
    """A pass, whose derivatives can be had until the weights change.

    Attributes:
        kernel: the kernel that made it.
        x: its inputs `[N, d]`.
        hidden: the outputs of all layers but the last, as the kernel keeps them.
        outputs: `[N, m]`.
    """

    kernel: MLPKernel
    x: Tensor
    hidden: Tensor
    outputs: Tensor

    def pull(self, cotangent: Tensor) -> Tensor:
        """`Jᵀ c`, `[N, m] -> [N, d]`."""
        found = torch.empty_like(self.x)
        self.kernel.backward(self, cotangent, None, None, found.data_ptr())
        return found

    def gradients(self, delta: Tensor, buffers: Sequence[Tensor | None]) -> None:
        """Fills the buffers of weight and bias of each layer, from the gradient by the outputs `[N, m]`."""
        self.kernel.backward(self, delta, *_places(buffers), None)


@dataclass(frozen=True)
class KernelTangents:
    """A pass of values and directions; its attributes are as those of `KernelPass`.

    Attributes:
        outputs: f(x) `[N, m]`.
        along: J(x) u `[N, m]`.
    """

    kernel: MLPKernel
    x: Tensor
    direction: Tensor
    hidden: Tensor
    tangents: Tensor
    outputs: Tensor
    along: Tensor

    def gradients(
        self, by_outputs: Tensor, buffers: Sequence[Tensor | None], by_along: Tensor, *, by_inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Fills the buffers as `KernelPass.gradients` does; the gradients by x and u, if `by_inputs`."""
        found = (torch.empty_like(self.x), torch.empty_like(self.x)) if by_inputs else (None, None)
        places = [None if each is None else each.data_ptr() for each in found]
        self.kernel.pull(self, by_outputs, by_along, *_places(buffers), *places)
        return found


def _places(buffers: Sequence[Tensor | None]) -> tuple[Any, Any]:
    """Addresses of the buffers of weights and of biases."""
    places = [None if buffer is None else buffer.data_ptr() for buffer in buffers]
    array = ctypes.c_void_p * (len(places) // 2)
    return array(*places[::2]), array(*places[1::2])


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_cpu


def _readable(tensor: Tensor) -> bool:
    return _plain(tensor) and tensor.is_contiguous()


def _like(rows: Tensor, count: int, width: int) -> Tensor:
    """The rows as the kernel reads them; it would read whatever stands there."""
    if rows.shape != (count, width) or not _plain(rows):
        raise ValueError(
            f"expected {count} x {width} numbers in single precision on the CPU, got {tuple(rows.shape)}, "
            f"{rows.dtype} on {rows.device}"
        )
    return rows.contiguous()


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled(Path(__file__).with_suffix(".cpp"))
    if library is None:
        return None
    # Networks and buffers are pointers; behind the weights of a pass comes the number of its rows.
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.packed_floats.restype = library.hidden_floats.restype = size
    library.packed_floats.argtypes = library.hidden_floats.argtypes = [pointer]
    library.pack.argtypes = [pointer, pointer]
    for name, tensors in (("forward", 3), ("backward", 6), ("push", 6), ("pull", 10)):
        getattr(library, name).argtypes = [pointer, pointer, size, *[pointer] * tensors]
    library.climb.argtypes = [*[pointer] * 2, size, *[pointer] * 3, size, *[pointer] * 5]
    return library
