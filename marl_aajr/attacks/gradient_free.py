"""Attacks without gradients of the policy: noise, which does not look at it, and random searches.

Every other attack must beat the noise, or something is wrong. What a search finds and gradient attacks do not
is what the policy hides from them (gradient masking).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.core.bound_objective import once
from marl_aajr.core.checks import positive, whole
from marl_aajr.core.policy import Policy
from marl_aajr.core.seeds import drawn


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack, mixes_sizes=True):
    """δ uniform in the set."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "uniform noise in the perturbation set (a control, not an adversary)"
    access: ClassVar[Access] = "none"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.perturbations.sample(obs, generator=generator)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Attack, mixes_sizes=True):
    """δ = Π_Δ(σ ε M z), z ~ N(0, I): a noisy sensor, cut off at the set.

    Attributes:
        sigma: σ > 0, a fraction of ε.

    Raises:
        ValueError: σ ≤ 0.
    """

    name: ClassVar[str] = "noise-gaussian"
    summary: ClassVar[str] = "Gaussian noise projected onto the perturbation set (a control)"
    access: ClassVar[Access] = "none"

    sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("sigma", self.sigma, note=" (a fraction of epsilon)")

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        noise = drawn(obs, partial(_normal, width=obs.shape[-1]), generator=generator)
        if (preconditioner := self.perturbations.preconditioner(obs)) is not None:
            noise = noise * preconditioner
        return self.perturbations.project(self.perturbations.radius(obs, self.sigma) * noise, obs)


@dataclass(frozen=True, kw_only=True)
class WorstNoise(Attack, mixes_sizes=True):
    """The worst of n uniform δ, by the objective: random search, which needs no gradient.

    Attributes:
        samples: n ≥ 1.

    Raises:
        ValueError: n < 1.
    """

    name: ClassVar[str] = "noise-worst"
    summary: ClassVar[str] = "the worst of 20 uniform noises, by the objective"
    access: ClassVar[Access] = "queries"

    samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("samples", self.samples)

    @torch.no_grad()
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        g = self.bound(policy, obs)
        worst, value = torch.zeros_like(obs), once(g, obs)
        for _ in range(self.samples):
            delta = self.perturbations.sample(obs, generator=generator)
            tried = once(g, obs + delta)
            worse = tried > value
            worst, value = torch.where(worse.unsqueeze(-1), delta, worst), torch.where(worse, tried, value)
        return worst


_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, in ten-thousandths of the budget, after which the share of changed features is halved."""


@dataclass(frozen=True, kw_only=True)
class SquareAttack(Attack, mixes_sizes=True):
    """Start at a random corner; redraw ever fewer random features at a time; keep what is worse.

    The original changes squares of an image; features of a vector have no neighbours, so a random subset is
    changed instead:

        δ' = δ but for h = max(1, round(p_i d)) random features, which become ±ε (one sign for all)
        δ ← δ' where g(δ') > g(δ)

    For L2 the subset is redrawn as Gaussian and the row scaled back to the sphere. p_i is halved after 0.1,
    0.5, 2, 5, 10, 20, 40, 60 and 80 % of the queries, as in the original.

    Attributes:
        queries: evaluations of the objective, ≥ 1.
        share: p_0, in (0, 1].

    Raises:
        ValueError: a setting out of its range.

    Source: Andriushchenko 2020 (arXiv 1912.00049), adapted to vectors.
    """

    name: ClassVar[str] = "square"
    summary: ClassVar[str] = "Square-style random search: 100 queries, no gradients"
    access: ClassVar[Access] = "queries"

    queries: int = 100
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("queries", self.queries)
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share!r}")

    @torch.no_grad()
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        g = self.bound(policy, obs)
        worst, value = torch.zeros_like(obs), once(g, obs)
        free = torch.arange(obs.shape[-1], device=obs.device)
        if (touched := self.perturbations.free(obs)) is not None:
            free = free[touched > 0]
        width = free.shape[0]
        delta = self._redraw(torch.zeros_like(obs), obs, free, obs.shape[-1], generator)
        for query in range(self.queries):
            tried = once(g, obs + delta)
            # Ties are taken while nothing has been found: on a plateau the search must keep moving.
            worse = tried >= value
            worst, value = torch.where(worse.unsqueeze(-1), delta, worst), torch.where(worse, tried, value)
            features = min(self._features(query + 1, obs.shape[-1]), width)
            order = drawn(obs, partial(_some, width=width, features=features), generator=generator)
            delta = self._redraw(worst, obs, free[order], 1, generator)
        return worst

    def _features(self, query: int, features: int) -> int:
        """h: how many features the next query changes."""
        halvings = sum(query * 10_000 > after * self.queries for after in _HALVINGS)
        return max(1, round(self.share / 2**halvings * features))

    def _redraw(
        self, delta: Tensor, obs: Tensor, index: Tensor, signs: int, generator: torch.Generator
    ) -> Tensor:
        """δ with the features `index [h]` or `[B, h]` on the boundary of the set.

        For L∞ with one random sign for each row, or (`signs` > 1) for each feature.
        """
        index = index.expand(obs.shape[0], index.shape[-1])
        epsilon, preconditioner = self.perturbations.radius(obs), self.perturbations.preconditioner(obs)
        linf = self.perturbations.norm == "linf"
        width = 1 if linf and signs == 1 else index.shape[-1]
        noise = drawn(
            obs,
            lambda like, own: like.new_empty(len(like), width).normal_(generator=own),
            generator=generator,
        )
        # For L2 spread over a row like ε / √d, so that what is kept and what is drawn weigh alike.
        value = (epsilon * noise.sign() if linf else epsilon * noise / obs.shape[-1] ** 0.5).expand_as(index)
        if preconditioner is not None:
            value = value * preconditioner[index]
        moved = delta.scatter(-1, index, value)
        if not linf:
            length = self.perturbations.size(moved).clamp_min(torch.finfo(obs.dtype).tiny)
            moved = moved * (epsilon / length.unsqueeze(-1))
        return self.perturbations.project(moved, obs)


def _normal(like: Tensor, generator: torch.Generator, *, width: int) -> Tensor:
    """Standard normal numbers, `[B, width]`."""
    return like.new_empty(len(like), width).normal_(generator=generator)


def _some(like: Tensor, generator: torch.Generator, *, width: int, features: int) -> Tensor:
    """So many random ones out of `width` features for each row, `[B, features]`."""
    order = torch.rand(len(like), width, generator=generator, device=like.device)
    return order.topk(features).indices
