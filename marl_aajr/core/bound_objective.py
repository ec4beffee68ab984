"""An objective bound to a batch, as the ascent asks for it: values, and their gradient by δ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.policy import Policy, PulledBack, where_rows

BoundObjective = Callable[[Tensor], Tensor]
"""Perturbed observations `[B, ..., d]` to values `[B, ...]`."""


@dataclass(frozen=True)
class OutputObjective:
    """g(δ) = ℓ(f(s + δ)) whose derivative by the outputs is known in closed form.

    Attributes:
        policy: f, a policy, or a critic with values `[B, ...]`.
        value: ℓ, `[B, ..., m] -> [B, ...]`, for autograd.
        value_and_gradient: ℓ and ∂ℓ/∂y, `[B, ...]` and like f's outputs, without.
    """

    policy: PulledBack
    value: Callable[[Tensor], Tensor]
    value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __call__(self, obs: Tensor) -> Tensor:
        return self.value(self.policy(obs))

    def once(self, obs: Tensor) -> Tensor:
        """The same, with a graph that can be differentiated once."""
        return self.value(self.policy.once(obs) if isinstance(self.policy, Policy) else self.policy(obs))


def once(g: BoundObjective, obs: Tensor) -> Tensor:
    """g at `obs [B, ..., d]`, by whatever is quickest; its graph can be differentiated once."""
    return g.once(obs) if isinstance(g, OutputObjective) else g(obs)


def value_at(g: BoundObjective, policy: Policy, obs: Tensor, outputs: Tensor) -> Tensor:
    """g at `obs [B, ..., d]`, where the policy's outputs `[B, ..., m]` there are known."""
    return g.value(outputs) if isinstance(g, OutputObjective) and g.policy is policy else g(obs)


def value_and_gradient(
    g: BoundObjective, obs: Tensor, delta: Tensor, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """g(δ) `[B, ...]` and ∇_δ Σ g `[B, ..., d]` at `obs + delta`, without a graph.

    The gradient is with respect to δ alone: nothing of the parameters' is computed. The sum is over the rows
    of `mask` (None: all): what is padded behind a sequence follows from δ as well, and nobody asks for it.
    """
    if isinstance(g, OutputObjective):
        outputs, pull = g.policy.vjp(obs + delta)
        value, by_outputs = g.value_and_gradient(outputs)
        if mask is not None:
            by_outputs = where_rows(mask, by_outputs, torch.zeros_like(by_outputs))
        return value, pull(by_outputs)
    with torch.enable_grad():
        point = delta.detach().requires_grad_(True)
        value = g(obs + point)
        counted = value if mask is None else torch.where(mask, value, 0.0)
        (gradient,) = torch.autograd.grad(counted.sum(), point)
    return value.detach(), gradient
