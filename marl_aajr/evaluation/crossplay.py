"""Cross-play: every team against every opponent, over runs, and the ratings that the matrix gives.

Intervals are over runs, which are what a method would be trained as again; a single run has none. Episodes
and random numbers are the same in every cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from marl_aajr.evaluation.intervals import LEVEL, student_interval
from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.pool import at_size
from marl_aajr.evaluation.ratings import Array, elo, nash_average
from marl_aajr.evaluation.result import ActionsResult


@dataclass(frozen=True)
class MeanOverRuns:
    """A mean over runs, with Student's interval; None for a single run."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float] | Array) -> Self:
        """Of one value for each run."""
        return cls(float(np.mean(values)), *student_interval(values, level=LEVEL))


@dataclass(frozen=True)
class TeamRating:
    """The ratings of one team; intervals by resampling the runs of every team, None where there is one each.

    Attributes:
        nash: what it earns against the pool's equilibrium (Nash averaging).
        nash_interval: its 95 % percentile interval.
        weight: its share of the teams' own equilibrium.
        elo: from episodes in which it earned more than another team did against the same opponent.
        elo_interval: its interval.
        first: the share of resamplings in which its Nash rating is the highest.
    """

    team: str
    nash: float
    nash_interval: tuple[float, float] | None
    weight: float
    elo: float
    elo_interval: tuple[float, float] | None
    first: float | None


@dataclass(frozen=True, eq=False)
class CrossPlay:
    """The returns of teams against opponents, without attack or under the worst of a size.

    Attributes:
        teams: names of the rows, such as methods.
        opponents: names of the columns.
        returns: for each team, `[runs, opponents, episodes]`.
        epsilon: the size of the attack; 0: none.
    """

    teams: tuple[str, ...]
    opponents: tuple[str, ...]
    returns: tuple[Array, ...]
    epsilon: float = 0.0

    @classmethod
    def of(cls, results: Mapping[str, Sequence[ActionsResult]], *, epsilon: float = 0.0) -> Self:
        """The cross-play of evaluations against one pool: by team, the results of its runs.

        Raises:
            ValueError: no run of a team, or runs that met other opponents or played other episodes.
            KeyError: no attack of that size was chosen.
        """
        found = {
            team: [[at_size(rows, epsilon)[0] for rows in run.opponents] for run in runs]
            for team, runs in results.items()
        }
        met = [[tuple(rows.opponent for rows in run.opponents) for run in runs] for runs in results.values()]
        names = {each for runs in met for each in runs}
        if len(names) != 1 or not all(met) or not next(iter(names)):
            raise ValueError(
                "expected runs of every team that met the same opponents, got "
                f"{' and '.join(sorted(', '.join(each) or 'none' for each in names)) or 'none'}"
            )
        return cls(tuple(found), next(iter(names)), tuple(map(_stacked, found.values())), epsilon)

    @classmethod
    def between(cls, results: Mapping[str, ActionsResult]) -> Self:
        """The cross-play of a cooperative game: each team with members of each other one in its places.

        On the diagonal a team plays by itself; elsewhere the mean over the places that partners took, which
        bear the names of the teams.

        Raises:
            ValueError: a team that did not play with another one.
        """
        table = []
        for team, run in results.items():
            line = []
            for other in results:
                with_it = [r for r in run.adversarial_agents if (r.kind, r.source) == ("partner", other)]
                if other != team and not with_it:
                    raise ValueError(
                        f"expected teams that each played with all others, got {team} without {other}"
                    )
                played = [run.clean.returns] if other == team else [row.returns for row in with_it]
                line.append(np.mean(played, axis=0))
            table.append(np.array([line]))
        return cls(tuple(results), tuple(results), tuple(table))

    @property
    def matrix(self) -> Array:
        """The mean return of each team against each opponent, `[teams, opponents]`."""
        return np.array([runs.mean((0, 2)) for runs in self.returns])

    @property
    def cells(self) -> tuple[tuple[MeanOverRuns, ...], ...]:
        """The same with intervals over runs, row by row."""
        return tuple(tuple(MeanOverRuns.of(column) for column in r.mean(2).T) for r in self.returns)

    @property
    def team_means(self) -> tuple[MeanOverRuns, ...]:
        """The score of each team: its mean over the pool."""
        return tuple(MeanOverRuns.of(runs.mean((1, 2))) for runs in self.returns)

    @property
    def opponent_means(self) -> tuple[float, ...]:
        """The mean return of all teams against each opponent: the lower, the harder it is."""
        return tuple(self.matrix.mean(0).tolist())

    @property
    def unique(self) -> bool:
        """Whether Nash averaging has one answer."""
        return nash_average(self.matrix).unique

    def ratings(self, *, resamples: int = 200, seed: int = 0) -> tuple[TeamRating, ...]:
        """The ratings of the teams, in their order; the seed is that of the resampling of runs."""
        nash, points = nash_average(self.matrix), elo(_wins(self.returns))
        rng = np.random.default_rng(seed)
        several = resamples > 0 and max(map(len, self.returns)) > 1
        drawn = [self._resampled(rng) for _ in range(resamples if several else 0)]
        again = np.array([nash_average(_means(returns)).ratings for returns in drawn])
        others = np.array([elo(_wins(returns)) for returns in drawn])
        first = [float((again.argmax(1) == i).mean()) if several else None for i in range(len(self.teams))]
        return tuple(
            TeamRating(
                team=team,
                nash=float(nash.ratings[i]),
                nash_interval=_interval(again[:, i]) if several else None,
                weight=float(nash.rows[i]),
                elo=float(points[i]),
                elo_interval=_interval(others[:, i]) if several else None,
                first=first[i],
            )
            for i, team in enumerate(self.teams)
        )

    def _resampled(self, rng: np.random.Generator) -> list[Array]:
        return [runs[rng.integers(len(runs), size=len(runs))] for runs in self.returns]


def _stacked(runs: Sequence[Sequence[Outcome]]) -> Array:
    episodes = {len(outcome.returns) for run in runs for outcome in run}
    if len(episodes) != 1:
        raise ValueError(f"expected as many episodes of every run, got {sorted(episodes)}")
    return np.array([[outcome.returns for outcome in run] for run in runs])


def _means(returns: Sequence[Array]) -> Array:
    return np.array([runs.mean((0, 2)) for runs in returns])


def _wins(returns: Sequence[Array]) -> Array:
    """Shares of episodes in which one team earned more than another against the same opponent, `[n, n]`.

    A pair of runs against one opponent is a game, and a share of its episodes the part that was won.
    """
    wins = np.zeros((len(returns), len(returns)))
    for i, mine in enumerate(returns):
        for j, other in enumerate(returns):
            if i != j:
                gap = mine[:, None] - other[None]
                wins[i, j] = ((gap > 0) + 0.5 * (gap == 0)).mean(-1).sum()
    return wins


def _interval(values: Array) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
