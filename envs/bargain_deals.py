"""What agents can have together in a round of bargaining: those who listen, and those who do not.

Goods are worth to an agent what one of the equally likely `orders`, `[T, G]`, says.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

_STARTS = 100


def best_deal(values: Tensor) -> Tensor:
    """The greatest sum of what agents can have, `[N, G, ...] -> [...]`."""
    agents, goods = values.shape[:2]
    deals = torch.tensor(list(permutations(range(goods), agents)), device=values.device)
    return torch.stack([values[i, deals[:, i]] for i in range(agents)]).sum(0).amax(0)


def mean_best_deal(orders: Tensor, *, agents: int) -> float:
    """The mean of `best_deal` over the orders of all agents."""
    everybody = torch.cartesian_prod(*[torch.arange(len(orders))] * agents)
    return float(best_deal(orders[everybody].permute(1, 2, 0)).mean())


def deaf_deal(orders: Tensor, *, agents: int, quarrel: float) -> float:
    """The greatest mean sum of agents whose claims depend on their own orders alone.

    From many starts, each agent in turn takes the best answer to the others, as long as that gains anything:
    for two agents and three goods, tests find nothing better. With many of both it is a lower bound.
    """
    generator = torch.Generator().manual_seed(0)
    best = -float("inf")
    for _ in range(_STARTS):
        claims = torch.randint(orders.shape[1], (agents, len(orders)), generator=generator)
        before, total = -float("inf"), deaf_total(orders, claims, quarrel=quarrel)
        while total > before + 1e-9:
            for i in range(agents):
                claims[i] = _answer(orders, claims, i, quarrel=quarrel)
            before, total = total, deaf_total(orders, claims, quarrel=quarrel)
        best = max(best, total)
    return best


def deaf_total(orders: Tensor, claims: Tensor, *, quarrel: float) -> float:
    """The mean sum of agents who claim a good for each order, `[N, T]`."""
    share, worth = _claimed(orders, claims)
    total = 0.0
    for i in range(len(claims)):
        alone = (1 - _without(share, i)).prod(0)
        total += float((worth[i] * alone - quarrel * share[i] * (1 - alone)).sum())
    return total


def _claimed(orders: Tensor, claims: Tensor) -> tuple[Tensor, Tensor]:
    """How often each agent claims each good, and what it is worth to it then on average, both `[N, G]`."""
    chosen = torch.nn.functional.one_hot(claims, orders.shape[1]).double()
    return chosen.mean(1), (chosen * orders).mean(1)


def _answer(orders: Tensor, claims: Tensor, agent: int, *, quarrel: float) -> Tensor:
    """The best claim of one agent for each of its orders `[T]`, given those of the others."""
    share, worth = (_without(part, agent) for part in _claimed(orders, claims))
    alone = (1 - share).prod(0)
    gain = orders * alone - quarrel * (1 - alone)
    for j in range(len(share)):  # whom a claim drives into a quarrel
        gain = gain - (worth[j] + quarrel * share[j]) * (1 - _without(share, j)).prod(0)
    return gain.argmax(1)


def _without(rows: Tensor, i: int) -> Tensor:
    return torch.cat([rows[:i], rows[i + 1 :]])
