"""Plain MLPs with their derivatives written out: the networks that most small policies are.

With a few thousand weights, the bookkeeping of autograd takes as long as the arithmetic. A stack of linear
layers with tanh or ReLU between them needs none of it: y_i = W_i h_{i−1} + b_i and h_i = σ(y_i) give

    c ↦ Jᵀc         c_{i−1} = W_iᵀ (σ'(y_i) ⊙ c_i)
    u ↦ J u         t_i = σ'(y_i) ⊙ W_i t_{i−1}

and reverse mode through either is as short. In single precision on the CPU a compiled kernel makes a pass in
one call (`marl_aajr.core.mlp_kernel`), elsewhere PyTorch does. Everything else goes through autograd. The
numbers are the same, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marl_aajr.core.mlp_kernel import KernelPass, MLPKernel
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


_ACTIVATIONS: dict[type[nn.Module], Activation] = {
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


@torch.no_grad()
def evaluated(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`, without a graph."""
    mlp = PlainMLP.of(layers)
    outputs: Tensor = layers(x) if mlp is None else mlp(x)
    return outputs


def hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its layers say: weight norm and pruning work by hooks, too."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


class PlainMLP:
    """Linear layers with tanh or ReLU between them.

    Args:
        layers: linear layers, with an activation after each but the last.

    Attributes:
        layers: the same.

    Raises:
        ValueError: other layers; see `of`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self._linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
        self._between = [_ACTIVATIONS[type(layer)] for layer in layers[1::2] if type(layer) in _ACTIVATIONS]
        alternate = len(self._linear) == len(self._between) + 1
        if not alternate or len(self._linear) + len(self._between) < len(layers):
            kinds = ", ".join(type(layer).__name__ for layer in layers)
            raise ValueError(f"expected Linear layers with Tanh or ReLU between them, got {kinds or 'none'}")
        if len({id(layer.weight) for layer in self._linear}) < len(self._linear):
            raise ValueError("expected each layer to have weights of its own, got some that are shared")

    @classmethod
    def of(cls, module: object) -> Self | None:
        """The module as a plain MLP, sharing its parameters; None where it is something else."""
        if not isinstance(module, nn.Sequential | nn.Linear) or hooked(module):
            return None
        try:
            return cls(list(opened(module)))
        except ValueError:
            return None

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs `[..., m]` of inputs `[..., d]`; one node of the graph, differentiable once."""
        rows = x.reshape(-1, x.shape[-1])
        outputs: Tensor
        if torch.is_grad_enabled() or (kernel := self._kernel_for(rows)) is None:
            outputs = _MLP.apply(self, rows, *self.parameters())
        else:
            outputs = kernel(rows)
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])

    @torch.no_grad()
    def forward(self, x: Tensor, *, changed: bool = True) -> Pass:
        """A pass of inputs `[N, d]`; `changed`: whether weights may be others than in the last one."""
        kernel = self._kernel_for(x, changed=changed)
        if kernel is not None:
            return kernel.forward(x)
        parameters = self.parameters()
        return TorchPass(self._between, parameters, *_forward(self._between, x, parameters))

    def vjp(self, x: Tensor, *, changed: bool = True) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """f(x) `[..., m]` and c ↦ J(x)ᵀ c, `[..., m] -> [..., d]`, at `x [..., d]`; without a graph."""
        made = self.forward(x.reshape(-1, x.shape[-1]), changed=changed)

        def pull(cotangent: Tensor) -> Tensor:
            return made.pull(cotangent.reshape(made.outputs.shape)).reshape(x.shape)

        return made.outputs.reshape(*x.shape[:-1], made.outputs.shape[-1]), pull

    def jvp(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and J(x) u, `[..., d] -> [..., m]` twice; one node of the graph, differentiable once."""
        width = x.shape[-1]
        outputs, tangent = _JVP.apply(
            self._between, x.reshape(-1, width), direction.reshape(-1, width), *self.parameters()
        )
        shape = (*x.shape[:-1], outputs.shape[-1])
        return outputs.reshape(shape), tangent.reshape(shape)

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each layer in order; None for a bias that is not there."""
        return [tensor for layer in self._linear for tensor in (layer.weight, layer.bias)]

    @cached_property
    def _kernel(self) -> MLPKernel | None:
        return MLPKernel(self.layers) if MLPKernel.serves(self.layers) else None

    def _kernel_for(self, x: Tensor, *, changed: bool = True) -> MLPKernel | None:
        """The kernel with the weights as they are, where it serves for such inputs."""
        kernel = self._kernel if x.dtype == torch.float32 and x.device.type == "cpu" else None
        if kernel is not None and changed:
            kernel.pack()
        return kernel


@dataclass(frozen=True)
class TorchPass:
    """A pass by PyTorch; see `marl_aajr.core.mlp_kernel.KernelPass`."""

    between: Sequence[Activation]
    parameters: Sequence[Tensor | None]
    outputs: Tensor
    seen: Sequence[Tensor]

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


Pass = KernelPass | TorchPass


def _forward(
    between: Sequence[Activation], x: Tensor, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """f(x) `[N, m]`, and the inputs of every layer."""
    seen = []
    for i, activation in enumerate((*between, None)):
        seen.append(x)
        x = _layer(x, *parameters[2 * i : 2 * i + 2], rate=1.0 if activation is None else activation.rate)
        if activation is not None:
            activation.apply(x)
    return x, seen


def _layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, rate: float) -> Tensor:
    """r (W x + b)."""
    assert weight is not None
    return product(x, weight, bias if bias is None or rate == 1.0 else bias * rate, factor=rate)


def _push(
    between: Sequence[Activation], x: Tensor, direction: Tensor, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """f(x), J(x) u and the inputs of every layer: values and tangents as halves of one `[2n, ·]`."""
    count = len(x)
    both = torch.cat([x, direction])
    seen = []
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
    return value, tangent, seen


def _pull(
    between: Sequence[Activation],
    gradient: Tensor,
    seen: Sequence[Tensor],
    parameters: Sequence[Tensor | None],
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradient by the first layer's outputs and by the parameters, from that by f(x) and J u."""
    count = len(gradient) // 2
    found: list[Tensor | None] = []
    for i in range(len(between), -1, -1):
        weight, bias = parameters[2 * i : 2 * i + 2]
        assert weight is not None
        found[:0] = product(gradient.t(), seen[i].t()), None if bias is None else gradient[:count].sum(0)
        if i > 0:
            gradient, activation = product(gradient, weight.t()), between[i - 1]
            by_value, by_tangent = gradient[:count], gradient[count:]
            value, tangent = seen[i][:count], seen[i][count:]
            activation.pull(by_value, value)
            if activation.pull_tangent is not None:
                activation.pull_tangent(by_value, by_tangent, tangent, value)
            activation.pull(by_tangent, value)
    return gradient, found


class _MLP(torch.autograd.Function):
    """f(x)."""

    @staticmethod
    def forward(ctx: Any, mlp: PlainMLP, x: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.made = mlp.forward(x)
        ctx.save_for_backward(*parameters)  # which says where one has changed since
        outputs: Tensor = ctx.made.outputs
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if tensor is None else torch.empty_like(tensor) for tensor in ctx.saved_tensors]
        ctx.made.gradients(gradient, found)
        return None, ctx.made.pull(gradient) if ctx.needs_input_grad[1] else None, *found


class _JVP(torch.autograd.Function):
    """(f(x), J(x) u)."""

    @staticmethod
    def forward(
        ctx: Any, between: Sequence[Activation], x: Tensor, direction: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        outputs, tangent, seen = _push(between, x, direction, parameters)
        ctx.between = between
        ctx.save_for_backward(*seen, *parameters)
        return outputs, tangent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor, by_tangent: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.between) + 1
        seen, parameters = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        gradient, by_parameters = _pull(ctx.between, torch.cat([by_outputs, by_tangent]), seen, parameters)
        if not any(ctx.needs_input_grad[1:3]):
            return None, None, None, *by_parameters
        by_x, by_direction = product(gradient, parameters[0].t()).chunk(2)
        return None, by_x, by_direction, *by_parameters


def opened(module: nn.Module, *kinds: type[nn.Sequential]) -> Iterator[nn.Module]:
    """The layers of nested Sequentials, and of other such kinds, in order."""
    if isinstance(module, nn.Sequential) and type(module) in (nn.Sequential, *kinds):
        for part in module:
            yield from opened(part, *kinds)
    else:
        yield module
