"""The score of a team over a pool of opponents, and one table of everybody that it has met.

A score is the mean over the pool; the worst member is the one that leaves least on the selection episodes,
reported on others. Play against the own side is no part of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from marl_aajr.evaluation.intervals import bootstrap_interval
from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.result import ActionsResult, Rows
from marl_aajr.evaluation.worst_attack import Difference, paired_difference


@dataclass(frozen=True)
class PoolScore:
    """The returns of a team over a pool, without attack or under the worst attack of a size.

    Attributes:
        epsilon: the size; 0: without attack.
        mean: over the pool and the episodes.
        low: lower end of its interval over episodes, of which each opponent plays the same; None for one.
        high: upper end.
        returns: mean over the pool, one for each episode.
        by_opponent: mean against each opponent.
        worst: the opponent that leaves least on the selection episodes; None without such episodes.
    """

    epsilon: float
    mean: float
    low: float | None
    high: float | None
    returns: tuple[float, ...]
    by_opponent: dict[str, float]
    worst: str | None

    @property
    def worst_mean(self) -> float | None:
        """The mean return against the worst opponent, on episodes that it was not chosen on."""
        return None if self.worst is None else self.by_opponent[self.worst]


def pool_scores(result: ActionsResult, *, seed: int = 0) -> tuple[PoolScore, ...]:
    """Without attack, then under the worst attack of each size, which is chosen for each opponent.

    Empty without opponents; a size is left out for which no attack was chosen. The seed is that of the
    resampling.
    """
    sizes = [0.0, *dict.fromkeys(worst.epsilon for rows in result.opponents for worst in rows.worst)]
    return tuple(_score(result, epsilon, seed) for epsilon in sizes) if result.opponents else ()


def at_size(rows: Rows, epsilon: float) -> tuple[Outcome, float | None]:
    """The row without attack (ε = 0) or of the worst attack of a size, and its selection return.

    Raises:
        KeyError: no attack of that size was chosen.
    """
    if epsilon == 0:
        return rows.clean, rows.clean_selection_return
    worst = {each.epsilon: each for each in rows.worst}[epsilon]
    (played,) = (row for row in rows.attacks if (row.attack, row.agents) == (worst.attack, worst.agents))
    return played, worst.selection_return


def _score(result: ActionsResult, epsilon: float, seed: int) -> PoolScore:
    found = {rows.opponent: at_size(rows, epsilon) for rows in result.opponents}
    returns = np.mean([outcome.returns for outcome, _ in found.values()], axis=0).tolist()
    low, high = bootstrap_interval(returns, seed=seed)
    left = {name: chosen_on for name, (_, chosen_on) in found.items() if chosen_on is not None}
    return PoolScore(
        epsilon=epsilon,
        mean=float(np.mean(returns)),
        low=low,
        high=high,
        returns=tuple(returns),
        by_opponent={name: outcome.mean for name, (outcome, _) in found.items()},
        worst=min(left, key=left.__getitem__) if len(left) == len(found) else None,
    )


CompanyKind = Literal["own", "partner", "stranger", "random", "idle", "traitor", "opponent", "best-response"]
"""Whom a team can meet, from friend to foe."""


@dataclass(frozen=True)
class Met:
    """One company that a team has met, without attacks on observations.

    Attributes:
        kind: what it is; an `opponent` and a `best-response` were trained against this team, one that was
            trained against others is a `stranger`.
        name: of the opponent, or of the run that it or a partner or a traitor comes from.
        agents: the agents that it plays.
        teammates: whether these are of the team itself.
        outcome: the return of the team, theirs included where they are of it.
        lost: this return minus that of play with its own side, over the same episodes; None for that.
        worst: whether it is the worst of its kind and place, by the selection episodes.
    """

    kind: CompanyKind
    name: str
    agents: tuple[str, ...]
    teammates: bool
    outcome: Outcome
    lost: Difference | None
    worst: bool


def everybody_met(result: ActionsResult, teams: dict[str, str], team: str) -> tuple[Met, ...]:
    """All company of a team, of both kinds of games, by kind and from the least return lost to the most."""
    order = get_args(CompanyKind)
    met = sorted(_met(result, teams, team), key=lambda m: (order.index(m.kind), -m.outcome.mean))
    return tuple(met)


def _met(result: ActionsResult, teams: dict[str, str], team: str) -> Iterator[Met]:
    yield Met("own", "", (), False, result.clean, None, False)
    scores = pool_scores(result)
    worst = scores[0].worst if len(result.opponents) > 1 else None
    for rows in result.opponents:
        lost = paired_difference(rows.clean.returns, result.clean.returns)
        yield Met(rows.kind, rows.opponent, rows.agents, False, rows.clean, lost, rows.opponent == worst)
    for row in result.adversarial_agents:
        mine = teams[row.agents[0]] == team
        lost = paired_difference(row.returns, result.clean.returns)
        yield Met(row.met_as, row.source, row.agents, mine, row, lost, row.worst)
