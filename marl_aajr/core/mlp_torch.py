"""The passes of a plain MLP by PyTorch: in double precision, on accelerators, and without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from marl_aajr.core.products import product


@dataclass(frozen=True)
class Activation:
    """An elementwise σ whose derivatives are functions of its output h.

    Attributes:
        apply: σ(y / rate), in place of y: `rate` is what the layer before is multiplied by.
        rate: r.
        pull: c ↦ σ'(y) ⊙ c, in place of c.
        pull_tangent: (c, g, t, h) adds to c what the tangent t = σ'(y) ⊙ a means to the gradient by y,
            σ''(y) a ⊙ g, in place; None: nothing.
    """

    apply: Callable[[Tensor], Tensor]
    rate: float
    pull: Callable[[Tensor, Tensor], Tensor]
    pull_tangent: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None


_MINUS_ONE = torch.tensor(-1.0)


def _tanh_of_half(y: Tensor) -> Tensor:
    """`tanh(y / 2) = 2 σ(y) − 1`, in place: in a quarter of the time of torch's, with an error of 2e-7."""
    if y.dtype != torch.float32 or y.device.type != "cpu":
        return y.mul_(0.5).tanh_()
    # Doubling is exact: it may be done to the weights.
    return torch.add(_MINUS_ONE, y.sigmoid_(), alpha=2.0, out=y)


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(
        _tanh_of_half,
        2.0,
        lambda c, h: torch.ops.aten.tanh_backward.grad_input(c, h, grad_input=c),  # c (1 − h²)
        lambda c, g, t, h: c.addcmul_(g * t, h, value=-2),  # tanh'' = −2 h tanh', and t holds tanh' already
    ),
    nn.ReLU: Activation(
        torch.relu_, 1.0, lambda c, h: torch.ops.aten.threshold_backward.grad_input(c, h, 0, grad_input=c)
    ),
}


@dataclass(frozen=True)
class TorchPass:
    """A pass by PyTorch; see `marl_aajr.core.mlp_kernel.KernelPass`."""

    between: Sequence[Activation]
    parameters: Sequence[Tensor | None]
    seen: Sequence[Tensor]
    outputs: Tensor

    @classmethod
    def of(cls, between: Sequence[Activation], parameters: Sequence[Tensor | None], x: Tensor) -> Self:
        """That of these inputs."""
        seen = []
        for i, activation in enumerate((*between, None)):
            seen.append(x)
            rate = 1.0 if activation is None else activation.rate
            x = _layer(x, *parameters[2 * i : 2 * i + 2], rate=rate)
            if activation is not None:
                activation.apply(x)
        return cls(between, parameters, seen, x)

    @torch.no_grad()
    def pull(self, cotangent: Tensor) -> Tensor:
        """`Jᵀ c`, `[N, m] -> [N, d]`."""
        for i in range(len(self.between), -1, -1):
            cotangent = self._through(i, cotangent)
        return cotangent

    @torch.no_grad()
    def gradients(self, delta: Tensor, buffers: Sequence[Tensor | None]) -> None:
        """Fills the buffers of `PlainMLP.parameters`, from the gradient by the outputs `[N, m]`."""
        for i in range(len(self.between), -1, -1):
            by_weight, by_bias = buffers[2 * i : 2 * i + 2]
            assert by_weight is not None
            by_weight.copy_(product(delta.t(), self.seen[i].t()))
            if by_bias is not None:
                torch.sum(delta, 0, out=by_bias)
            if i > 0:
                delta = self._through(i, delta)

    def _through(self, i: int, delta: Tensor) -> Tensor:
        """The gradient by the outputs of the layer before the i-th, from that by its own."""
        weight = self.parameters[2 * i]
        assert weight is not None
        delta = product(delta, weight.t())
        return self.between[i - 1].pull(delta, self.seen[i]) if i > 0 else delta


def _layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, rate: float) -> Tensor:
    """r (W x + b)."""
    assert weight is not None
    return product(x, weight, bias if bias is None or rate == 1.0 else bias * rate, factor=rate)


@dataclass(frozen=True)
class TorchTangents:
    """A pass of values and directions, as halves of one `[2N, ·]`; see `KernelTangents`."""

    between: Sequence[Activation]
    parameters: Sequence[Tensor | None]
    seen: Sequence[Tensor]
    outputs: Tensor
    along: Tensor

    @classmethod
    def of(
        cls, between: Sequence[Activation], parameters: Sequence[Tensor | None], x: Tensor, direction: Tensor
    ) -> Self:
        """That of these inputs and directions."""
        count, both, seen = len(x), torch.cat([x, direction]), []
        for i, activation in enumerate((*between, None)):
            seen.append(both)
            weight, bias = parameters[2 * i : 2 * i + 2]
            assert weight is not None
            both = product(both, weight)
            value, tangent = both[:count], both[count:]
            if bias is not None:
                value.add_(bias)
            if activation is not None:
                activation.apply(value if activation.rate == 1.0 else value.mul_(activation.rate))
                activation.pull(tangent, value)
        return cls(between, parameters, seen, value, tangent)

    @torch.no_grad()
    def gradients(
        self, by_outputs: Tensor, by_along: Tensor, buffers: Sequence[Tensor | None], *, by_inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Fills the buffers as `TorchPass.gradients` does; the gradients by x and u, if `by_inputs`."""
        count, both = len(by_outputs), torch.cat([by_outputs, by_along])
        for i in range(len(self.between), -1, -1):
            weight, (by_weight, by_bias) = self.parameters[2 * i], buffers[2 * i : 2 * i + 2]
            assert weight is not None
            assert by_weight is not None
            by_weight.copy_(product(both.t(), self.seen[i].t()))
            if by_bias is not None:
                torch.sum(both[:count], 0, out=by_bias)
            if i > 0 or by_inputs:
                both = product(both, weight.t())
            if i > 0:
                self._bend(self.between[i - 1], both[:count], both[count:], self.seen[i])
        return (both[:count], both[count:]) if by_inputs else (None, None)

    @staticmethod
    def _bend(activation: Activation, by_value: Tensor, by_tangent: Tensor, seen: Tensor) -> None:
        """Through an activation, in place."""
        value, tangent = seen[: len(by_value)], seen[len(by_value) :]
        activation.pull(by_value, value)
        if activation.pull_tangent is not None:
            activation.pull_tangent(by_value, by_tangent, tangent, value)
        activation.pull(by_tangent, value)
