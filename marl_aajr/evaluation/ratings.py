"""Ratings of players from a table of what each earns against each: Nash averaging and Elo.

A mean over a pool depends on who is in it: ten copies of one weak opponent make a team that beats it look
strong. Nash averaging asks the zero-sum game between teams and opponents instead, in which both choose their
player by an equilibrium:

    p* ∈ argmax_p min_q pᵀ M q,   q* ∈ argmin_q max_p pᵀ M q,   ratings M q*

with M [m, n] what team i earns against opponent j. Of several equilibria it takes those of the highest
entropy, so copies of a player share its weight. Source: Balduzzi 2018 (arXiv 1806.02643), agents against
tasks; of an antisymmetric M it is his rating of agents against agents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog, minimize

Array = NDArray[np.float64]

_SLACK = 1e-7
"""Of a linear program's constraints, in units of the largest difference of payoffs."""

_ALIKE = 1e-4
"""Difference of two shares of one equilibrium."""

ELO_MEAN = 1500.0
ELO_SCALE = 400 / np.log(10)
"""Rating points in one unit of log odds: 400 are ten to one."""


@dataclass(frozen=True, eq=False)
class NashAverage:
    """The equilibrium of highest entropy of a zero-sum table, and the ratings that follow from it.

    Attributes:
        rows: p*, the share of each row, `[m]`.
        columns: q*, the share of each column, `[n]`.
        value: p*ᵀ M q*.
        ratings: M q*, what each row earns against that of the columns, `[m]`; those in p* have the value.
        difficulties: −p*ᵀ M, what each column earns against that of the rows, `[n]`.
        unique: whether no other equilibrium exists; otherwise entropy chose.
    """

    rows: Array
    columns: Array
    value: float
    ratings: Array
    difficulties: Array
    unique: bool


def nash_average(payoffs: ArrayLike) -> NashAverage:
    """Nash averaging of payoffs `[m, n]`: what each row earns against each column, and each column loses.

    Raises:
        ValueError: not a table of finite numbers.
    """
    table = _table(payoffs)
    spread = float(np.ptp(table))
    scaled = (table - table.min()) / (spread or 1.0)
    p, value = _strategy(scaled)
    q, _ = _strategy(-scaled.T)
    unique = _is_regular(scaled, p, q, value)
    if not unique:
        (p, one), (q, other) = _widest(scaled, p, value), _widest(-scaled.T, q, -value)
        unique = one and other
    ratings, difficulties = table @ q, -(p @ table)
    return NashAverage(p, q, float(p @ table @ q), ratings, difficulties, unique)


def elo(wins: ArrayLike, *, draws: float = 1.0) -> Array:
    """Elo ratings of games, as the likeliest of P(i beats j) = 1 / (1 + 10^((r_j − r_i) / 400)), mean 1500.

    An order of strength is all it knows: of rock, paper and scissors all are equal, and so they are whatever
    else is played. Use it beside Nash averaging.

    Args:
        wins: `[n, n]`, the games that i won against j, a draw half for each.
        draws: draws of each against an average player, added so that who never lost has a rating.

    Raises:
        ValueError: not a square table of finite numbers ≥ 0.
    """
    won = _table(wins)
    if won.shape[0] != won.shape[1] or (won < 0).any():
        raise ValueError(f"expected wins ≥ 0 as a square table, got {won.tolist()}")

    def surprise(strength: Array) -> tuple[float, Array]:
        gap = strength[:, None] - strength[None, :]
        lost = won / (1 + np.exp(gap))
        toward = draws * np.tanh(strength / 2) / 2
        loss = (won * np.logaddexp(0, -gap)).sum() + draws * np.logaddexp(strength / 2, -strength / 2).sum()
        return float(loss), lost.sum(0) - lost.sum(1) + toward

    found = minimize(surprise, np.zeros(len(won)), jac=True, method="BFGS", options={"gtol": 1e-9})
    strength: Array = found.x - found.x.mean()
    return ELO_MEAN + ELO_SCALE * strength


def _table(values: ArrayLike) -> Array:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"expected a table of finite numbers, got {values!r}")
    return table


def _strategy(table: Array) -> tuple[Array, float]:
    """One optimal strategy of the row player, who maximises, and the value of the game."""
    m, n = table.shape
    found = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([-table.T, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
    )
    assert found.success, found.message
    return _shares(found.x[:m]), float(found.x[m])


def _is_regular(table: Array, p: Array, q: Array, value: float) -> bool:
    """Whether p and q are surely the only equilibrium; False where that is to be asked otherwise.

    Supports of one size whose equations have one solution, and every other player strictly worse.
    """
    rows, columns = p > _SLACK, q > _SLACK
    k = int(rows.sum())
    if k != columns.sum():
        return False
    equations = np.ones((k + 1, k + 1))
    equations[:k, :k], equations[k, k] = table[np.ix_(rows, columns)], 0.0
    worse_rows = (table @ q)[~rows] < value - 10 * _SLACK
    worse_columns = (p @ table)[~columns] > value + 10 * _SLACK
    strict = bool(worse_rows.all() and worse_columns.all())
    return strict and bool(np.linalg.cond(equations) < 1 / _SLACK)


def _widest(table: Array, p: Array, value: float) -> tuple[Array, bool]:
    """The optimal strategy of the highest entropy, and whether it is the only optimal one."""
    m, n = table.shape
    optimal: dict[str, Any] = {"A_ub": -table.T, "b_ub": np.full(n, _SLACK - value)}
    optimal |= {"A_eq": np.ones((1, m)), "b_eq": [1.0]}
    # The two ends in a direction that no face of optimal strategies is at right angles to.
    direction = np.random.default_rng(0).normal(size=m)
    ends = [linprog(sign * direction, **optimal) for sign in (1, -1)]
    if (np.ptp([p, *(end.x for end in ends if end.success)], axis=0) < _ALIKE).all():
        return p, True
    inside = _inside(optimal, m, n)
    may = inside > _ALIKE
    start, earned = _shares(inside[may]), table[may]

    def information(shares: Array) -> float:
        return float((shares * np.log(np.maximum(shares, 1e-300))).sum())

    found = minimize(
        information,
        start,
        jac=lambda shares: 1 + np.log(np.maximum(shares, 1e-300)),
        bounds=[(0, 1)] * len(start),
        constraints=[
            {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
            {"type": "ineq", "fun": lambda x: x @ earned - value + _SLACK, "jac": lambda _: earned.T},
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    widest = np.zeros(m)
    widest[may] = found.x if found.success else start
    return _shares(widest), False


def _inside(optimal: dict[str, Any], m: int, n: int) -> Array:
    """An optimal strategy that gives a share to all who can have one: as much as possible up to 1 / 10m."""
    beside = {
        "A_ub": np.block([[optimal["A_ub"], np.zeros((n, m))], [-np.eye(m), np.eye(m)]]),
        "b_ub": np.append(optimal["b_ub"], np.zeros(m)),
        "A_eq": np.append(np.ones(m), np.zeros(m))[None],
        "bounds": [(0, None)] * m + [(0, 0.1 / m)] * m,
    }
    found = linprog(np.append(np.zeros(m), -np.ones(m)), **(optimal | beside))
    return np.asarray(found.x[:m], np.float64)


def _shares(values: Array) -> Array:
    kept: Array = np.maximum(values, 0.0)
    return kept / kept.sum()
