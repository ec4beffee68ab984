"""Plain MLPs with their derivatives written out: the networks that most small policies are.

With a few thousand weights, the bookkeeping of autograd takes as long as the arithmetic. A stack of linear
layers with tanh or ReLU between them needs none of it: y_i = W_i h_{i−1} + b_i and h_i = σ(y_i) give

    c ↦ Jᵀc         c_{i−1} = W_iᵀ (σ'(y_i) ⊙ c_i)
    u ↦ J u         t_i = σ'(y_i) ⊙ W_i t_{i−1}

and reverse mode through either is as short. Everything else goes through autograd, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Gradient = dict[Tensor, Tensor]
"""By parameter."""


@dataclass(frozen=True)
class Activation:
    """An elementwise σ whose derivatives are functions of its output h.

    Attributes:
        apply: σ, in place.
        pull: c ↦ σ'(y) ⊙ c, in place of c.
        bend: (g, t, h) ↦ what the tangent t = σ'(y) ⊙ a adds to the gradient by y, σ''(y) a ⊙ g; None: zero.
    """

    apply: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


def _tanh_pull(gradient: Tensor, output: Tensor) -> Tensor:
    """``g (1 − h²)``, in place of ``g``."""
    return torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)


def _tanh_bend(gradient: Tensor, tangent: Tensor, output: Tensor) -> Tensor:
    """``−2 h t g``: tanh'' = −2 h tanh', and t holds tanh' already."""
    return (gradient * tangent).mul_(output).mul_(-2)


def _relu_pull(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient.masked_fill_(output <= 0, 0.0)


_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(torch.tanh_, _tanh_pull, _tanh_bend),
    nn.ReLU: Activation(torch.relu_, _relu_pull),
}


class PlainMLP:
    """Linear layers with tanh or ReLU between them.

    Args:
        layers: linear layers, with an activation after each but the last.

    Raises:
        ValueError: other layers; see :meth:`of`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
        self._between = [_ACTIVATIONS[type(layer)] for layer in layers[1::2] if type(layer) in _ACTIVATIONS]
        alternate = len(self._linear) == len(self._between) + 1
        if not alternate or len(self._linear) + len(self._between) < len(layers):
            kinds = ", ".join(type(layer).__name__ for layer in layers)
            raise ValueError(f"expected Linear layers with Tanh or ReLU between them, got {kinds or 'none'}")

    @classmethod
    def of(cls, module: object) -> Self | None:
        """The module as a plain MLP, sharing its parameters; None where it is something else."""
        if type(module) not in (nn.Sequential, nn.Linear):
            return None
        try:
            return cls(list(_opened(module)))
        except ValueError:
            return None

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs ``[N, m]`` of inputs ``[N, d]``, and the inputs of every layer."""
        seen = [x]
        for layer, activation in zip(self._linear, self._between, strict=False):
            seen.append(activation.apply(functional.linear(seen[-1], layer.weight, layer.bias)))
        last = self._linear[-1]
        return functional.linear(seen[-1], last.weight, last.bias), seen

    def backward(self, gradient: Tensor, seen: Sequence[Tensor]) -> Gradient:
        """The gradient by the parameters, from that by the outputs ``[N, m]``."""
        result: Gradient = {}
        for i in range(len(self._linear) - 1, -1, -1):
            layer = self._linear[i]
            result[layer.weight] = gradient.t() @ seen[i]
            if layer.bias is not None:
                result[layer.bias] = gradient.sum(0)
            if i > 0:
                gradient = self._between[i - 1].pull(gradient @ layer.weight, seen[i])
        return result

    @torch.no_grad()
    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """f(x) ``[..., m]`` and c ↦ J(x)ᵀ c, ``[..., m] -> [..., d]``, at ``x [..., d]``; without a graph."""
        outputs, seen = self.forward(x.reshape(-1, x.shape[-1]))

        @torch.no_grad()
        def pull(cotangent: Tensor) -> Tensor:
            gradient = cotangent.reshape(outputs.shape) @ self._linear[-1].weight
            for i in range(len(self._between) - 1, -1, -1):
                gradient = self._between[i].pull(gradient, seen[i + 1]) @ self._linear[i].weight
            return gradient.reshape(x.shape)

        return outputs.reshape(*x.shape[:-1], -1), pull

    def jvp(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and J(x) u, ``[..., d] -> [..., m]`` twice; one node of the graph, differentiable once."""
        parameters = [tensor for layer in self._linear for tensor in (layer.weight, layer.bias)]
        width = x.shape[-1]
        outputs, tangent = _JVP.apply(
            self._between, x.reshape(-1, width), direction.reshape(-1, width), *parameters
        )
        return outputs.reshape(*x.shape[:-1], -1), tangent.reshape(*x.shape[:-1], -1)


class _JVP(torch.autograd.Function):
    """(f(x), J(x) u): each layer takes values and tangents as the two halves of one batch ``[2N, ·]``."""

    @staticmethod
    def forward(
        ctx: Any, between: Sequence[Activation], x: Tensor, direction: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count = len(x)
        both = torch.cat([x, direction])
        seen = []
        for i, activation in enumerate((*between, None)):
            seen.append(both)
            both = both @ parameters[2 * i].t()
            value, tangent = both[:count], both[count:]
            if (bias := parameters[2 * i + 1]) is not None:
                value.add_(bias)
            if activation is not None:
                activation.apply(value)
                activation.pull(tangent, value)
        ctx.between = between
        ctx.save_for_backward(*seen, *parameters[::2])
        return value, tangent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor, by_tangent: Tensor) -> tuple[Tensor | None, ...]:
        between, saved = ctx.between, ctx.saved_tensors
        seen, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        gradient, count = torch.cat([by_outputs, by_tangent]), len(by_outputs)
        by_parameters: list[Tensor | None] = []
        for i in range(len(weights) - 1, -1, -1):
            has_bias = ctx.needs_input_grad[2 * i + 4]
            by_parameters[:0] = gradient.t() @ seen[i], gradient[:count].sum(0) if has_bias else None
            if i > 0:
                gradient = gradient @ weights[i]
                _pull_both(between[i - 1], gradient, seen[i], count)
        by_inputs: tuple[Tensor | None, Tensor | None] = (None, None)
        if any(ctx.needs_input_grad[1:3]):
            gradient = gradient @ weights[0]
            by_inputs = gradient[:count], gradient[count:]
        return None, *by_inputs, *by_parameters


def _pull_both(activation: Activation, gradient: Tensor, seen: Tensor, count: int) -> None:
    """The gradient by h and t to that by y and a, in place, where h = σ(y) and t = σ'(y) ⊙ a."""
    value, tangent = seen[:count], seen[count:]
    by_value, by_tangent = gradient[:count], gradient[count:]
    bent = None if activation.bend is None else activation.bend(by_tangent, tangent, value)
    activation.pull(by_value, value)
    activation.pull(by_tangent, value)
    if bent is not None:
        by_value.add_(bent)


def _opened(module: object) -> Iterator[nn.Module]:
    """The layers of nested Sequentials in order."""
    if type(module) is nn.Sequential:
        for part in module:
            yield from _opened(part)
    else:
        assert isinstance(module, nn.Module)
        yield module
