"""A policy as robustness code sees it: observations in, distribution inputs out.

Everything above this file (attacks, regularizers, diagnostics) works on any `Policy`; whether it is
an RLlib module, an exported victim or a plain `nn.Module` is an adapter's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.fixed_network import Difference, fixed, unmade
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.mlp_kernel import MLPKernel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Policy(ABC):
    """A differentiable map `obs [B, ..., d] -> distribution inputs [B, ..., m]`.

    Each row of the batch has its own copy of whatever else the network reads (recurrent state, action mask,
    parts of the observation that nobody perturbs); these are held fixed and follow the rows through
    `select` and `repeat`. A policy with such columns says in `changed` what they are.

    Attributes:
        distribution: what the outputs parametrise.
        critic: V at observations, `[B, ..., d] -> [B, ...]`; None where the policy comes without.
        network: the module that is held while an adversary looks (`marl_aajr.core.fixed_network`); None:
            one pass leaves no trace, and any other gives the same.
        layers: the layers from observations `[B, d]` to distribution inputs before a mask, which bounds go
            through; None: there is more to it.
        block: e, where observations are embedded words, `[B, ..., L·e]`, each with a radius of its own; None:
            they are not.
        tokens: those words in each row, `[B, L]` integers.
    """

    critic: Callable[[Tensor], Tensor] | None = None
    network: nn.Module | None = None
    layers: nn.Module | None = None
    block: int | None = None
    tokens: Tensor | None = None

    def __init__(self, distribution: ActionDistribution) -> None:
        self.distribution = distribution

    @abstractmethod
    def __call__(self, obs: Tensor) -> Tensor:
        """Distribution inputs `[B, ..., m]` at `obs [B, ..., d]`."""

    def once(self, obs: Tensor) -> Tensor:
        """The same, by whatever is quickest; its graph, where there is one, can be differentiated once."""
        return self(obs)

    def fixed(self) -> AbstractContextManager[Difference]:
        """Holds the network as one fixed function (`marl_aajr.core.fixed_network`), if there is a need to."""
        return nullcontext("none") if self.network is None else fixed(self.network)

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """f(s) `[B, ..., m]` and c ↦ J(s)ᵀ c, `[B, ..., m] -> [B, ..., d]`, once; nothing has a graph.

        Nothing of the parameters' is computed.
        """
        return autograd_vjp(self, obs)

    def kernel(self, obs: Tensor) -> MLPKernel | None:
        """A compiled network that gives f at these observations; None: f is more, or there is none."""
        return None

    def parameters(self) -> list[Tensor]:
        """The trained parameters of f; empty where they are not known."""
        return []

    @property
    def embeddings(self) -> Tensor:
        """What each word of the vocabulary becomes, `[V, e]`, for a policy that reads words."""
        raise ValueError(f"expected a policy that reads words, got {type(self).__name__}, which does not")

    def embed(self, tokens: Tensor) -> Tensor:
        """The observations of words `[B, L]`, `[B, L·e]`, of a policy that reads words."""
        return self.embeddings[tokens].flatten(-2)

    def select(self, index: Tensor) -> Self:
        """The same policy for the rows `index [B']` only."""
        return self.changed(lambda column: column[index])

    def repeat(self, count: int) -> Self:
        """The same policy for `count` copies of the batch, one after the other: `[count · B, ...]`."""
        return self if count == 1 else self.changed(lambda column: torch.cat([column] * count))

    def redrawn(self) -> Self:
        """The same policy with new random numbers, where it has some of its own, as it will decide."""
        return self

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same policy with all that a row has of its own changed, column `[B, ...]` by column."""
        return self


@runtime_checkable
class PulledBack(Protocol):
    """A function of observations that knows its own derivative: a policy, or a critic that has it."""

    def __call__(self, obs: Tensor, /) -> Tensor: ...

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """f(s), and c ↦ J(s)ᵀ c once, without a graph."""


def autograd_vjp(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(x) and c ↦ J(x)ᵀ c, once, of any function of rows."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        outputs = function(point)

    def pull(cotangent: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(outputs, point, cotangent)
        return gradient

    return outputs.detach(), pull


def differentiable(policy: Policy, obs: Tensor) -> bool:
    """Whether torch can follow the outputs to the inputs; the gradient may be zero all the same."""
    with torch.enable_grad():
        return policy(obs.detach().clone().requires_grad_(True)).requires_grad


def check_rows(policy: Policy, obs: Tensor) -> None:
    """Raise `ValueError` where a row's outputs change with the rows beside it: it has no Jacobian."""
    if policy.network is not None and unmade(policy.network):
        return
    both = torch.arange(min(8, len(obs)), device=obs.device)
    some = both[: max(1, len(both) // 2)]
    with policy.fixed(), torch.no_grad():
        alone, beside = (policy.select(rows)(obs[rows])[: len(some)] for rows in (some, both))
    if not _close(alone, beside):
        raise ValueError(
            "expected a policy whose rows do not depend on one another, got outputs of a row that change by "
            f"up to {(alone - beside).abs().max():.3g} with the rows beside it; normalise each row by itself"
        )


def check_hooks(policy: Policy, obs: Tensor, outputs: Tensor) -> None:
    """Raise `ValueError` where outputs `[B, ..., m]` of a pass with hooks differ from those without."""
    with torch.no_grad():
        if not _close(policy(obs), outputs):
            raise ValueError(
                "expected forward hooks that only watch the network, got some that change its outputs; put "
                "what they do into the forward pass"
            )


def _close(outputs: Tensor, other: Tensor) -> bool:
    return torch.allclose(outputs, other, rtol=1e-2, atol=1e-3, equal_nan=True)


class ModulePolicy(Policy):
    """A plain `nn.Module` (or any function of tensors) as a policy.

    Attributes:
        mlp: the module with its derivatives written out, as it was when the policy was made; None where it
            is more than a plain MLP.

    Example:
        >>> policy = ModulePolicy(nn.Linear(4, 3), Categorical(3))
    """

    def __init__(self, module: Callable[[Tensor], Tensor], distribution: ActionDistribution) -> None:
        super().__init__(distribution)
        self.module = module
        self.mlp = PlainMLP.of(module)
        self.layers = module if isinstance(module, nn.Module) else None
        self.network = module if isinstance(module, nn.Module) and self.mlp is None else None

    def __call__(self, obs: Tensor) -> Tensor:
        return self.module(obs)

    def once(self, obs: Tensor) -> Tensor:
        return self(obs) if self.mlp is None else self.mlp(obs)

    def vjp(self, obs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return super().vjp(obs) if self.mlp is None else self.mlp.vjp(obs)

    def kernel(self, obs: Tensor) -> MLPKernel | None:
        return None if self.mlp is None else self.mlp.kernel_for(obs)

    def parameters(self) -> list[Tensor]:
        return list(self.module.parameters()) if isinstance(self.module, nn.Module) else []


Tree = Any
"""A tensor, alone or nested in dicts, tuples and lists (recurrent states)."""


def map_tree(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function` of every leaf and its counterparts in other trees; lists become tuples."""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple | list):
        return tuple(map_tree(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree."""
    found: list[Tensor] = []
    map_tree(found.append, tree)
    return found


def where_rows(rows: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    """The rows `[B, ...]` of `then` where a flag `[B]` is set, else those of `otherwise`; also `[G, E, ...]`.

    Where `then` has no rows, it is that of all.
    """
    return torch.where(rows.view(*rows.shape, *[1] * (otherwise.ndim - rows.ndim)), then, otherwise)


Critic = Callable[[Tensor], Tensor]
"""V at (perturbed) observations, `[B, ..., d] -> [B, ...]`."""


@runtime_checkable
class RowBound(Protocol):
    """A critic that reads more of a row than the observation handed in, as a recurrent one does."""

    def select(self, index: Tensor) -> Critic:
        """The critic of the rows `index` only."""


def critic_of(critic: Critic | None, index: Tensor) -> Critic | None:
    """The critic of the rows `index` only."""
    return critic.select(index) if isinstance(critic, RowBound) else critic


def selected(batch: DataclassInstance, index: Tensor) -> dict[str, Any]:
    """The rows `index` of every field that is a tensor, by name."""
    columns = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    return {name: value.index_select(0, index) for name, value in columns if isinstance(value, Tensor)}


BLOCK = 1024
"""Rows of a block; their values and tangents in a layer of 64 take half a megabyte."""

ALL_ROWS = slice(None)


def row_blocks(obs: Tensor) -> list[slice]:
    """Consecutive rows of `[B, ..., d]`, about `BLOCK` vectors d at a time."""
    rows = len(obs)
    size = max(1, BLOCK // max(1, obs.shape[1:-1].numel()))
    if obs.device.type != "cpu" or rows <= size:
        return [ALL_ROWS]
    return [slice(start, start + size) for start in range(0, rows, size)]


def point_blocks(points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Points and rows of `[T, B, ..., d]`, about `BLOCK` vectors d at a time."""
    count, obs = len(points), points[0]
    rows = row_blocks(obs)
    together = 1 if len(rows) > 1 else max(1, BLOCK // max(1, obs.shape[:-1].numel()))
    if obs.device.type != "cpu":
        together = count
    for t in range(0, count, together):
        yield from ((slice(t, t + together), part) for part in rows)
