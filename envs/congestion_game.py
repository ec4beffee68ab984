"""The congestion game of `congestion_v0`: its costs, its optimum, its equilibrium, and how lies spread.

A share x_m of all agents uses resource m, beside a load a_m that is there anyway; a more loaded resource
costs more:

    ℓ_m(x_m) = (a_m + x_m)^p,   a_m ≥ 0,  p > 0
    C(x)     = Σ_m x_m ℓ_m(x_m)                          social cost: what an agent pays on average

- **Social optimum**: x minimises C over the simplex. C is convex, so x is optimal iff the marginal costs
  ℓ_m + x_m ℓ_m' are equal where x_m > 0 and no smaller where x_m = 0.
- **Selfish (Wardrop) equilibrium**: nobody gains by moving; the costs ℓ_m themselves are equal where
  x_m > 0 and no smaller elsewhere, so x_m = (λ − a_m)₊: water that fills a vessel to one level. It
  minimises the potential Σ_m ∫_0^{x_m} ℓ_m (Beckmann et al. 1956).
- **Price of anarchy**: C(equilibrium) / C(optimum) ≤ 1 / (1 − p (p + 1)^{−(p+1)/p}) for whole p, 4/3 for
  p = 1 (Roughgarden and Tardos 2002; Roughgarden 2003).
- With N agents, shares are multiples of 1/N. Handing agents out one by one, each to the resource whose
  cost (or marginal social cost) will be least, gives a pure Nash equilibrium (or the optimum), because both
  objectives are separable and convex (Rosenthal 1973).

**How a lie spreads.** Let agents answer reports r of the last loads with the mixed choice π(r), and let
J = ∂π/∂r at the fixed point x* = π(a + x*). A lie δ_t that k of N agents hear in round t moves the shares

    d_t = x_t − x*,     d_t ≈ J d_{t−1} + (k/N) J δ_t.

Nobody else is lied to, but everybody hears of the loads that the lie made. Agents flee load, so J's
eigenvalues are −g ≤ 0, the loop gains of the policy, and the shares swing from side to side:

- one lie moves (k/N) g |δ| at first and 1/(1 − g) times as much in all, the most of it by agents who heard
  the truth;
- a lie that stays the same is answered: |d| → (k/N) g |δ| / (1 + g);
- a lie that swings with the agents is fed: |d| → (k/N) g |δ| / (1 − g). Near g = 1 a few who are lied to
  drive all the others to and fro as one herd, and beyond it the herd needs no lie.

For the logit answer π = softmax(−β ℓ),  J = −β (diag π − π πᵀ) diag(p (a + x)^{p−1}). A policy must answer
to the reports to find room, and what a lie can do is its gain along the lie.

Functions take resources in the first dimension, `[M, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BISECTIONS = 52  # halvings that leave of an interval of length 1 what float64 rounds


def costs(share: Tensor, *, background: Tensor, power: float) -> Tensor:
    """ℓ_m = (a_m + x_m)^p `[M, ...]`."""
    load = background + share
    return load if power == 1 else load**power


def social_cost(share: Tensor, *, background: Tensor, power: float) -> Tensor:
    """C = Σ_m x_m ℓ_m(x_m) `[...]`."""
    return (share * costs(share, background=background, power=power)).sum(0)


def equilibrium(*, background: Tensor) -> Tensor:
    """The shares `[M, ...]` from which nobody gains by moving, for any power; float64."""
    return _split(background.double(), lambda share: background.double() + share)


def optimum(*, background: Tensor, power: float) -> Tensor:
    """The shares `[M, ...]` of least social cost; float64."""
    a = background.double()

    def marginal(share: Tensor) -> Tensor:
        load = a + share
        # (a + x)^p + p x (a + x)^(p − 1), written so that it is 0 and not NaN at a = x = 0.
        return load**power * (1 + power * share / load.clamp_min(torch.finfo(a.dtype).tiny))

    return _split(a, marginal)


def nash(agents: int, *, background: Tensor) -> Tensor:
    """Shares `[M, ...]` of a pure Nash equilibrium of so many agents, for any power; float64."""
    return _hand_out(agents, background.double(), lambda share: background + share + 1 / agents)


def best_split(agents: int, *, background: Tensor, power: float) -> Tensor:
    """Shares `[M, ...]` of least social cost for so many agents; float64."""
    a = background.double()

    def increase(share: Tensor) -> Tensor:
        more = share + 1 / agents
        before = share * costs(share, background=a, power=power)
        return more * costs(more, background=a, power=power) - before

    return _hand_out(agents, a, increase)


def logit(reports: Tensor, *, power: float, sharpness: float) -> Tensor:
    """The mixed choice softmax(−β r^p) `[M, ...]` of an agent that believes the reported loads.

    Args:
        reports: r, `[M, ...]`; noise may make them negative, which counts as 0.
        power: p.
        sharpness: β.
    """
    return (-sharpness * reports.clamp_min(0) ** power).softmax(0)


def anarchy_bound(power: int) -> float:
    """The greatest C(equilibrium) / C(optimum) among costs that are polynomials of this degree."""
    return 1 / (1 - power * (power + 1) ** (-(power + 1) / power))


def _split(like: Tensor, marginal: Callable[[Tensor], Tensor]) -> Tensor:
    """Shares at which the increasing `marginal` is equal where they are positive, and greater elsewhere.

    Bisection for the common level, and within it for the share of each resource at that level.
    """

    def shares(level: Tensor) -> Tensor:
        return _bisect(torch.zeros_like(like), torch.ones_like(like), lambda x: marginal(x) >= level)

    none, all_agents = torch.zeros_like(like), torch.ones_like(like)
    low, high = marginal(none).amin(0), marginal(all_agents).amax(0)
    found = shares(_bisect(low, high, lambda level: shares(level).sum(0) >= 1))
    return found / found.sum(0)


def _bisect(low: Tensor, high: Tensor, enough: Callable[[Tensor], Tensor]) -> Tensor:
    """The least value that is enough, by element; `high` where none is."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = enough(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


def _hand_out(agents: int, like: Tensor, price: Callable[[Tensor], Tensor]) -> Tensor:
    share = torch.zeros_like(like)
    for _ in range(agents):
        cheapest = price(share).argmin(0, keepdim=True)
        share.scatter_add_(0, cheapest, torch.full_like(share[:1], 1 / agents))
    return share
