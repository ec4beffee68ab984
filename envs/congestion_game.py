"""The congestion game of `congestion_v0`: its costs, its optimum, its equilibrium, and how lies spread.

A share x_m of all agents uses resource m, at a cost that grows with the load:

    ℓ_m(x) = a_m + b_m x^p,   a_m ≥ 0,  b_m > 0,  p > 0
    C(x)   = Σ_m x_m ℓ_m(x_m)                          social cost: what an agent pays on average

- **Social optimum**: x minimises C over the simplex. C is convex, so x is optimal iff the marginal costs
  ℓ_m(x) + x ℓ_m'(x) = a_m + (p + 1) b_m x^p are equal where x_m > 0 and no smaller where x_m = 0.
- **Selfish (Wardrop) equilibrium**: nobody gains by moving; the costs ℓ_m themselves are equal where
  x_m > 0 and no smaller elsewhere. It minimises the potential Σ_m ∫_0^{x_m} ℓ_m (Beckmann et al. 1956).
- Both have the form x_m(λ) = ((λ − a_m)₊ / s_m)^{1/p}, Σ_m x_m(λ) = 1, with s_m = (p + 1) b_m and s_m = b_m.
- **Price of anarchy**: C(equilibrium) / C(optimum) ≤ 1 / (1 − p (p + 1)^{−(p+1)/p}), 4/3 for p = 1
  (Roughgarden and Tardos 2002; Roughgarden 2003).
- With N agents, loads are multiples of 1/N. Handing agents out one by one, each to the resource whose
  cost (or marginal social cost) will be least, gives a pure Nash equilibrium (or the optimum), because both
  objectives are separable and convex (Rosenthal 1973).

**How a lie spreads.** Let everybody answer reports r of the last loads with the mixed choice π(r), and let
J = ∂π/∂r at a fixed point x* = π(x*). A lie δ about the loads that k of N agents hear in one round moves

    x(t) − x* ≈ (k/N) J δ,   and then   x(t + 1) − x* ≈ J (x(t) − x*):

nobody else was lied to, but everybody sees the loads that the lie made. Agents flee load, so J's
eigenvalues are −g ≤ 0 and the error swings from side to side. With g < 1 it dies out, after moving up to
1/(1 − g) times the agents that the lie itself moved; with g > 1 it grows until the many move as one herd.
For the logit answer π = softmax(−β ℓ(r)),  J = −β (diag π − π πᵀ) diag ℓ'(r). The damage of a lie is the
gain of the policy in its direction.

Functions take resources in the first dimension, ``[M, ...]``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BISECTIONS = 60  # halve an interval of length ~1 down to float64's last bit


def costs(load: Tensor, *, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """ℓ_m = a_m + b_m x_m^p ``[M, ...]``."""
    return torch.addcmul(intercept, slope, load if power == 1 else load**power)


def social_cost(load: Tensor, *, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """C = Σ_m x_m ℓ_m(x_m) ``[...]``."""
    return (load * costs(load, intercept=intercept, slope=slope, power=power)).sum(0)


def equilibrium(*, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """The loads ``[M, ...]`` from which nobody gains by moving; float64."""
    return _level(intercept.double(), slope.double(), power)


def optimum(*, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """The loads ``[M, ...]`` of least social cost; float64."""
    return _level(intercept.double(), slope.double() * (power + 1), power)


def nash(agents: int, *, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """Loads ``[M, ...]`` of a pure Nash equilibrium of so many agents; float64."""

    def cost_of_one_more(load: Tensor) -> Tensor:
        return costs(load + 1 / agents, intercept=intercept, slope=slope, power=power)

    return _hand_out(agents, intercept.double(), cost_of_one_more)


def best_split(agents: int, *, intercept: Tensor, slope: Tensor, power: float) -> Tensor:
    """Loads ``[M, ...]`` of least social cost for so many agents; float64."""

    def increase(load: Tensor) -> Tensor:
        more = load + 1 / agents
        before = load * costs(load, intercept=intercept, slope=slope, power=power)
        return more * costs(more, intercept=intercept, slope=slope, power=power) - before

    return _hand_out(agents, intercept.double(), increase)


def logit(reports: Tensor, *, intercept: Tensor, slope: Tensor, power: float, sharpness: float) -> Tensor:
    """The mixed choice softmax(−β ℓ(r)) ``[M, ...]`` of an agent that believes the reported loads.

    Args:
        reports: ``[M, ...]``; noise may make them negative, which counts as 0.
        intercept: a.
        slope: b.
        power: p.
        sharpness: β.
    """
    believed = costs(reports.clamp_min(0), intercept=intercept, slope=slope, power=power)
    return (-sharpness * believed).softmax(0)


def anarchy_bound(power: float) -> float:
    """The greatest C(equilibrium) / C(optimum) that costs of this power allow."""
    return 1 / (1 - power * (power + 1) ** (-(power + 1) / power))


def _level(intercept: Tensor, steepness: Tensor, power: float) -> Tensor:
    """x_m(λ) = ((λ − a_m)₊ / s_m)^{1/p} at the λ where they sum to 1, by bisection."""

    def loads(level: Tensor) -> Tensor:
        return ((level - intercept).clamp_min(0) / steepness) ** (1 / power)

    low = intercept.amin(0)
    high = (intercept + steepness).amax(0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = loads(middle).sum(0) >= 1
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    found = loads(high)
    return found / found.sum(0)


def _hand_out(agents: int, like: Tensor, price: Callable[[Tensor], Tensor]) -> Tensor:
    load = torch.zeros_like(like)
    for _ in range(agents):
        cheapest = price(load).argmin(0, keepdim=True)
        load.scatter_add_(0, cheapest, torch.full_like(load[:1], 1 / agents))
    return load
