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
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from marl_aajr.core.mlp_kernel import KernelPass, KernelTangents, MLPKernel
from marl_aajr.core.mlp_torch import ACTIVATIONS, TorchPass


@torch.no_grad()
def evaluated(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`, without a graph."""
    mlp = PlainMLP.of(layers)
    outputs: Tensor = layers(x) if mlp is None else mlp(x)
    return outputs


def hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its layers say: weight norm and pruning work by hooks, too."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())


def transformed(x: Tensor) -> bool:
    """Whether `torch.func` or forward-mode differentiation is under way, which must see every layer."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return wrapped or forward_ad.unpack_dual(x).tangent is not None


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
        self._between = [ACTIVATIONS[type(layer)] for layer in layers[1::2] if type(layer) in ACTIVATIONS]
        alternate = len(self._linear) == len(self._between) + 1
        if not alternate or len(self._linear) + len(self._between) < len(layers):
            kinds = ", ".join(type(layer).__name__ for layer in layers)
            raise ValueError(f"expected Linear layers with Tanh or ReLU between them, got {kinds or 'none'}")
        if len({id(layer.weight) for layer in self._linear}) < len(self._linear):
            raise ValueError("expected each layer to have weights of its own, got some that are shared")

    @classmethod
    def of(cls, module: object) -> PlainMLP | None:
        """The module as a plain MLP, sharing its parameters; None where it is something else."""
        if not isinstance(module, nn.Sequential | nn.Linear) or hooked(module):
            return None
        layers, known = list(opened(module)), _known.get(module)
        if known is not None and list(map(id, known.layers)) == list(map(id, layers)):
            return known
        try:
            made = cls(layers)
        except ValueError:
            return None
        if isinstance(module, nn.Sequential):  # another's layers: of itself it would be kept for ever
            _known[module] = made
        return made

    def __call__(self, x: Tensor, *, changed: bool = True) -> Tensor:
        """Outputs `[..., m]` of inputs `[..., d]`; one node of the graph, differentiable once.

        `changed`: see `forward`.
        """
        if transformed(x):
            return nn.Sequential(*self.layers)(x)
        rows = x.reshape(-1, x.shape[-1])
        outputs: Tensor
        if torch.is_grad_enabled() or (kernel := self.kernel_for(rows, changed=changed)) is None:
            outputs = _MLP.apply(self, rows, *self.parameters())
        else:
            outputs = kernel(rows)
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1])

    @torch.no_grad()
    def forward(self, x: Tensor, *, changed: bool = True) -> Pass:
        """A pass of inputs `[N, d]`; `changed`: whether weights may be others than in the last one."""
        kernel = self.kernel_for(x, changed=changed)
        if kernel is not None:
            return kernel.forward(x)
        return TorchPass.of(self._between, self.parameters(), x)

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
            self, x.reshape(-1, width), direction.reshape(-1, width), *self.parameters()
        )
        shape = (*x.shape[:-1], outputs.shape[-1])
        return outputs.reshape(shape), tangent.reshape(shape)

    @torch.no_grad()
    def push(self, x: Tensor, direction: Tensor) -> Tangents:
        """f(x) and J(x) u `[N, m]` of `x [N, d]` and `u [N, d]`; without a graph."""
        kernel = self.kernel_for(x)
        if kernel is not None:
            return kernel.push(x, direction)
        return TorchPass.of(self._between, self.parameters(), x, direction)

    def parameters(self) -> list[Tensor | None]:
        """Weight and bias of each layer in order; None for a bias that is not there."""
        return [tensor for layer in self._linear for tensor in (layer.weight, layer.bias)]

    @cached_property
    def _kernel(self) -> MLPKernel | None:
        return MLPKernel(self.layers) if MLPKernel.serves(self.layers) else None

    def kernel_for(self, x: Tensor, *, changed: bool = True) -> MLPKernel | None:
        """The kernel with the weights as they are, where it serves for these and for such inputs."""
        kernel = self._kernel
        if kernel is None or not kernel.takes(x) or (changed and not kernel.pack()):
            return None
        return kernel


Pass = KernelPass | TorchPass
Tangents = KernelTangents | TorchPass


class _MLP(torch.autograd.Function):
    """f(x)."""

    @staticmethod
    def forward(ctx: Any, mlp: PlainMLP, x: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.made = mlp.forward(x)
        ctx.save_for_backward(*parameters)  # which says where one has changed since
        # Another tensor: that of the pass, with this node behind it, would keep itself alive for ever.
        outputs: Tensor = ctx.made.outputs.detach()
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = _places(ctx.saved_tensors)
        ctx.made.gradients(gradient, found)
        return None, ctx.made.pull(gradient) if ctx.needs_input_grad[1] else None, *found


class _JVP(torch.autograd.Function):
    """(f(x), J(x) u)."""

    @staticmethod
    def forward(
        ctx: Any, mlp: PlainMLP, x: Tensor, direction: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.made = mlp.push(x, direction)
        ctx.save_for_backward(*parameters)
        return ctx.made.outputs.detach(), ctx.made.along.detach()  # see _MLP

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor, by_along: Tensor) -> tuple[Tensor | None, ...]:
        found = _places(ctx.saved_tensors)
        by_inputs = any(ctx.needs_input_grad[1:3])
        return None, *ctx.made.gradients(by_outputs, found, by_along, by_inputs=by_inputs), *found


def _places(parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Room for the gradients, in rows whatever the parameters' layout is."""
    return [None if tensor is None else tensor.new_empty(tensor.shape) for tensor in parameters]


_known: WeakKeyDictionary[nn.Module, PlainMLP] = WeakKeyDictionary()


def opened(module: nn.Module, *kinds: type[nn.Sequential]) -> Iterator[nn.Module]:
    """The layers of nested Sequentials, and of other such kinds, in order."""
    if isinstance(module, nn.Sequential) and type(module) in (nn.Sequential, *kinds):
        for part in module:
            yield from opened(part, *kinds)
    else:
        yield module
