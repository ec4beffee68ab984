"""Targeted margins: one ascent towards each rival of the greedy action, not only towards the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.gradient import PGD, best_of
from marl_aajr.core.checks import at_least_one
from marl_aajr.core.distributions import Categorical, MultiCategorical
from marl_aajr.core.objectives import (
    BoundObjective,
    Clean,
    Margin,
    Objective,
    margin_objective,
    single_actions,
)
from marl_aajr.core.policy import Policy


@dataclass(frozen=True, eq=False)
class TargetedMargin(Margin):
    """z_t − z_{a*}, with a* greedy at s and t the rival of a given rank there.

    For multi-categorical policies the margins of the single actions are added. A rival that is masked, or
    that does not exist, is no target: g = 0.

    Attributes:
        rank: of each row's rival, `[B]`; 0: the nearest.
    """

    rank: Tensor

    def select(self, index: Tensor) -> TargetedMargin:
        return TargetedMargin(self.rank[index])

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        self.check(policy.distribution)
        chosen = [self._actions(y) for y in single_actions(policy, clean.outputs.detach())]
        return margin_objective(policy, [best for best, _ in chosen], lambda i, _: chosen[i][1])

    def _actions(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The greedy action and the target, each `[B, 1]`."""
        order = logits.argsort(dim=-1, descending=True, stable=True)
        place = (self.rank + 1).clamp_max(logits.shape[-1] - 1).unsqueeze(-1)
        return order[:, :1], order.gather(-1, place)


@dataclass(frozen=True, kw_only=True)
class TargetedPGD(PGD):
    """`PGD` towards each of the nearest rivals; kept is what leaves the greedy action furthest behind.

    Attributes:
        targets: how many rivals, from the nearest on; fewer where there are fewer actions.

    Raises:
        ValueError: a setting out of its range, an objective other than `margin`, or restarts, which the
            targets replace.

    Source: the targeted attacks of Croce & Hein 2020 (arXiv 2003.01690), in logits.
    """

    name: ClassVar[str] = "pgd-targeted"
    summary: ClassVar[str] = "projected gradient ascent towards each rival action (discrete actions)"

    objective: str | Objective = "margin"
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("targets", self.targets)
        if self.objective != "margin" or self.restarts != 1:
            raise ValueError(
                f"expected the objective 'margin' and restarts 1 for {self.name}, got {self.objective!r} and "
                f"{self.restarts}; set targets"
            )

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        margin = self.objective_for(policy.distribution)
        distribution = policy.distribution
        assert isinstance(distribution, Categorical | MultiCategorical)
        most = max(distribution.nvec) if isinstance(distribution, MultiCategorical) else distribution.n
        ranks = max(min(self.targets, most - 1), 1)
        starts = torch.zeros_like(obs).repeat(ranks, 1)
        rank = torch.arange(ranks, device=obs.device).repeat_interleave(len(obs))
        delta, _ = self._climb_from(policy, obs, TargetedMargin(rank), starts)
        everybody, copies = policy.repeat(ranks), obs.repeat(ranks, 1)
        with torch.no_grad():
            g = margin.bind(everybody, Clean(everybody(copies)))
            return best_of(ranks, delta, g(copies + delta))
