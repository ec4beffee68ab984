"""Square attack: random search on the corners of the set, without a gradient of the policy.

What it finds and gradient attacks do not is what the policy hides from them (gradient masking). The original
changes squares of an image; features of a vector have no neighbours, so a random subset is changed instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.checks import at_least_one
from marl_aajr.policy import Policy

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, in ten-thousandths of the budget, after which the share of changed features is halved."""


@dataclass(frozen=True, kw_only=True)
class SquareAttack(Attack):
    """Start at a random corner; redraw ever fewer random features at a time; keep what is worse.

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
        at_least_one("queries", self.queries)
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share!r}")

    @torch.no_grad()
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        objective = self.objective_for(policy.distribution)
        g = objective.bind(policy, self.clean(policy, obs, policy(obs)))
        worst, value = torch.zeros_like(obs), g(obs)
        delta = self._corner(obs, generator)
        for query in range(self.queries):
            tried = g(obs + delta)
            # Ties are taken while nothing has been found: on a plateau the search must keep moving.
            worse = tried >= value
            worst = torch.where(worse.unsqueeze(-1), delta, worst)
            value = torch.where(worse, tried, value)
            delta = self._mutate(worst, obs, self._features(query + 1, obs.shape[-1]), generator)
        return worst

    def _features(self, query: int, features: int) -> int:
        """h: how many features the next query changes."""
        share = self.share
        for after in _HALVINGS:
            if query * 10_000 > after * self.queries:
                share /= 2
        return max(1, round(share * features))

    def _corner(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        everything = torch.ones_like(obs, dtype=torch.bool)
        noise = torch.empty_like(obs).normal_(generator=generator)
        return self._place(torch.zeros_like(obs), noise, everything, obs)

    def _mutate(self, delta: Tensor, obs: Tensor, features: int, generator: torch.Generator) -> Tensor:
        order = torch.rand(obs.shape, generator=generator, device=obs.device)
        if (preconditioner := self.perturbations.preconditioner(obs)) is not None:
            order = order + (preconditioner == 0)  # features that may be touched come first
        chosen = torch.zeros_like(obs, dtype=torch.bool)
        chosen.scatter_(-1, order.topk(features, largest=False).indices, True)
        noise = torch.empty_like(obs).normal_(generator=generator)
        if self.perturbations.norm == "linf":
            noise = noise[:, :1].expand_as(noise)
        return self._place(delta, noise, chosen, obs)

    def _place(self, delta: Tensor, noise: Tensor, chosen: Tensor, obs: Tensor) -> Tensor:
        """δ with the chosen features replaced by noise on the boundary of the set."""
        epsilon, preconditioner = self.perturbations.epsilon, self.perturbations.preconditioner(obs)
        unit = torch.ones_like(obs) if preconditioner is None else preconditioner
        if self.perturbations.norm == "linf":
            return self.perturbations.project(torch.where(chosen, epsilon * noise.sign() * unit, delta), obs)
        # Spread over a row like ε / √d, so that what is kept and what is drawn weigh alike.
        size = epsilon / obs.shape[-1] ** 0.5
        moved = torch.where(chosen, size * noise * unit, delta)
        length = self.perturbations.size(moved).clamp_min(torch.finfo(obs.dtype).tiny)
        return self.perturbations.project(moved * (epsilon / length).unsqueeze(-1), obs)
