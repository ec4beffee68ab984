"""The mathematics of the congestion game: its optimum, its equilibrium, and what selfishness costs.

- **Price of anarchy**: C(equilibrium) / C(optimum) ≤ 1 / (1 − p (p + 1)^{−(p+1)/p}) for whole p, 4/3 for
  p = 1 (Roughgarden and Tardos 2002; Roughgarden 2003).
- With N agents, shares are multiples of 1/N. Handing agents out one by one, each to the resource whose
  cost (or marginal social cost) will be least, gives a pure Nash equilibrium (or the optimum), because both
  objectives are separable and convex (Rosenthal 1973).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from marl_aajr.envs.congestion_v0 import costs, equilibrium, optimum, social_cost
from torch import Tensor

pytestmark = pytest.mark.slow

POWERS = [0.5, 1.0, 2.0, 4.0]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random_games(count: int, *, resources: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(resources, count, generator=generator, dtype=torch.float64)


def anarchy_bound(power: int) -> float:
    """The greatest C(equilibrium) / C(optimum) among costs that are polynomials of this degree."""
    return 1 / (1 - power * (power + 1) ** (-(power + 1) / power))


def nash(agents: int, *, background: Tensor) -> Tensor:
    """Shares `[M, ...]` of a pure Nash equilibrium of so many agents, for any power; float64."""
    return hand_out(agents, background.double(), lambda share: background + share + 1 / agents)


def best_split(agents: int, *, background: Tensor, power: float) -> Tensor:
    """Shares `[M, ...]` of least social cost for so many agents; float64."""
    a = background.double()

    def increase(share: Tensor) -> Tensor:
        more = share + 1 / agents
        before = share * costs(share, background=a, power=power)
        return more * costs(more, background=a, power=power) - before

    return hand_out(agents, a, increase)


def hand_out(agents: int, like: Tensor, price: Callable[[Tensor], Tensor]) -> Tensor:
    share = torch.zeros_like(like)
    for _ in range(agents):
        cheapest = price(share).argmin(0, keepdim=True)
        share.scatter_add_(0, cheapest, torch.full_like(share[:1], 1 / agents))
    return share


def test_two_roads_by_hand() -> None:
    """Loads x and 1/2 + (1 − x): equal at x = 3/4. Marginal costs 2x and 1/2 + 2(1 − x): at x = 5/8."""
    roads = column(0.0, 0.5)
    torch.testing.assert_close(equilibrium(background=roads), column(3 / 4, 1 / 4))
    torch.testing.assert_close(optimum(background=roads, power=1.0), column(5 / 8, 3 / 8))
    paid = social_cost(column(3 / 4, 1 / 4), background=roads, power=2.0)
    assert float(paid) == pytest.approx(0.75**2)


def test_a_road_that_is_never_worth_it() -> None:
    """All of them on the first road pay 1, no more than the second costs when it is empty."""
    roads = column(0.0, 1.0)
    torch.testing.assert_close(equilibrium(background=roads), column(1.0, 0.0))
    torch.testing.assert_close(optimum(background=roads, power=1.0), column(3 / 4, 1 / 4))


@pytest.mark.parametrize("power", POWERS)
def test_nobody_gains_by_moving(power: float) -> None:
    background = random_games(500)
    share = equilibrium(background=background)
    paid = costs(share, background=background, power=power)
    torch.testing.assert_close(share.sum(0), torch.ones(500, dtype=torch.float64))
    assert bool((share >= 0).all())
    assert bool(((share < 1e-9) | (paid < paid.amin(0) + 1e-9)).all())
    assert bool((share < 1e-9).any()), "some resource stays empty somewhere, or the test is too easy"


@pytest.mark.parametrize("power", POWERS)
def test_no_other_shares_cost_less(power: float) -> None:
    background = random_games(200)
    best = social_cost(optimum(background=background, power=power), background=background, power=power)
    for share in torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(4), 300)):
        other = social_cost(share[:, None].expand(4, 200), background=background, power=power)
        assert bool((other >= best - 1e-12).all())


@pytest.mark.parametrize("power", [1, 2, 4])
def test_selfishness_costs_no_more_than_the_bound(power: int) -> None:
    background = 2 * random_games(500)
    selfish = social_cost(equilibrium(background=background), background=background, power=power)
    best = social_cost(optimum(background=background, power=power), background=background, power=power)
    price = selfish / best
    assert bool((price >= 1 - 1e-12).all())
    assert 1.05 < float(price.max()) <= anarchy_bound(power)
    assert anarchy_bound(1) == pytest.approx(4 / 3)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_few_agents_by_brute_force(power: float) -> None:
    agents, background = 5, random_games(20, resources=3)
    splits = [s for s in itertools.product(range(agents + 1), repeat=3) if sum(s) == agents]
    every = [
        social_cost(column(*split).expand(3, 20) / agents, background=background, power=power)
        for split in splits
    ]
    best = social_cost(
        best_split(agents, background=background, power=power), background=background, power=power
    )
    torch.testing.assert_close(best, torch.stack(every).amin(0))
    share = nash(agents, background=background)
    torch.testing.assert_close(share.sum(0), torch.ones(20, dtype=torch.float64))
    if_moved = costs(share + 1 / agents, background=background, power=power).amin(0)
    stays = costs(share, background=background, power=power) <= if_moved + 1e-12
    assert bool(((share < 1e-9) | stays).all())


def test_many_agents_come_close_to_the_continuum() -> None:
    background = random_games(30)
    torch.testing.assert_close(
        nash(1000, background=background), equilibrium(background=background), atol=4e-3, rtol=0
    )
    torch.testing.assert_close(
        best_split(1000, background=background, power=2.0),
        optimum(background=background, power=2.0),
        atol=4e-3,
        rtol=0,
    )
