"""Which methods may be ranked: those that have learned something, where all of them met the same opponents.

A policy that has learned nothing loses nothing under attack, and looks robust. A team that is judged against
its own side looks good where that side is weak. Both stay in the tables; neither is called the best.

A run has learned something where it returns more than the same team at random or idle, the better of them,
beyond doubt on the same episodes against the same opponents. A method counts as learned unless most of its
runs have learned nothing: single runs are never dropped, because what is left would flatter the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import Outcome, ReplacementKind
from marl_aajr.evaluation.worst_attack import paired_difference
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import number
from marl_aajr.report.run_results import RunResults

_DOING: dict[ReplacementKind, str] = {"idle": "doing nothing", "random": "acting at random"}
"""Control -> what it does, in a sentence."""


class Floor(NamedTuple):
    """The return of a team that has learned nothing: what it does, and the episodes."""

    doing: str
    outcome: Outcome


def floor(run: RunResults) -> Floor | None:
    """The better of the same team at random and idle; None where neither played these episodes."""
    kind = max(run.controls, key=lambda kind: run.controls[kind].mean, default=None)
    return None if kind is None else Floor(_DOING[kind], run.controls[kind])


def no_better_than_nothing(run: RunResults, outcome: Outcome) -> bool:
    """Whether these returns are not above the run's floor beyond doubt; False where that is not known."""
    control = floor(run)
    if control is None or len(outcome.returns) < 2:
        return False
    return not paired_difference(control.outcome.returns, outcome.returns).negative


def learned_nothing(row: MethodRow) -> list[RunResults]:
    """The runs that return no more without an attack than a team that has learned nothing."""
    return [run for run in row.runs if no_better_than_nothing(run, run.clean)]


def has_learned(row: MethodRow) -> bool:
    """Whether at least half of its runs have learned something, as far as that is known."""
    return 2 * len(learned_nothing(row)) <= len(row.runs)


def own_side(comparison: Comparison) -> bool:
    """Whether every team was judged against the other side of its own training, and no common opponent."""
    return bool(comparison.task.team) and not comparison.pool


def ranked(comparison: Comparison) -> tuple[MethodRow, ...]:
    """The methods of which one may be called the best."""
    if own_side(comparison):
        return ()
    return tuple(filter(has_learned, comparison.rows))


def unranked(comparison: Comparison) -> frozenset[int]:
    """Positions of the other methods."""
    kept = {row.method.label for row in ranked(comparison)}
    return frozenset(i for i, row in enumerate(comparison.rows) if row.method.label not in kept)


def nothing_left(rows: Sequence[MethodRow], epsilon: float) -> bool:
    """Whether the worst attack of a size leaves most runs of every method no more than doing nothing."""
    left = ([no_better_than_nothing(run, run.strongest(epsilon)) for run in row.runs] for row in rows)
    return all(2 * sum(found) > len(found) for found in left)


class Ranking(NamedTuple):
    """The methods at the sizes of attack where the same one is the best, apart from the same others.

    Attributes:
        at: these sizes.
        best: the method with the highest mean.
        rest: all others that may be ranked.
        tied: those of them that the best does not lead beyond doubt.
        lost: whether no method keeps more than doing nothing returns.
    """

    at: tuple[float, ...]
    best: MethodRow
    rest: tuple[MethodRow, ...]
    tied: tuple[MethodRow, ...]
    lost: bool

    @property
    def clear(self) -> bool:
        """Whether one method is the best beyond doubt."""
        return not self.tied and not self.lost

    @property
    def open(self) -> bool:
        """Whether the best cannot be told apart from any other."""
        return len(self.tied) == len(self.rest)


def rankings(comparison: Comparison) -> list[Ranking]:
    """The ranking at each size, those that agree together, clear wins first; empty for one method."""
    rows = ranked(comparison)
    if len(rows) < 2:
        return []
    found: dict[tuple[str, ...], list[Ranking]] = {}
    for epsilon in comparison.epsilons:
        best, *rest = sorted(rows, key=lambda row: -row.worst_return[epsilon].mean)
        tied = tuple(row for row in rest if not best.lead(row, epsilon).positive)
        one = Ranking((epsilon,), best, tuple(rest), tied, nothing_left(rows, epsilon))
        names = () if one.open else (best.method.label, *sorted(row.method.label for row in tied))
        found.setdefault(("lost",) if one.lost else names, []).append(one)
    joined = [of[0]._replace(at=tuple(one.at[0] for one in of)) for of in found.values()]
    return sorted(joined, key=lambda one: (one.lost, len(one.tied)))


def nothing_learned(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each method with runs that have learned nothing, those that are not ranked first."""
    found = [
        (comparison, row) for comparison in comparisons for row in comparison.rows if learned_nothing(row)
    ]
    several = len(comparisons) > 1
    return [
        _in_words(comparison, row, f" on {comparison.task.short}" if several else "")
        for comparison, row in sorted(found, key=lambda pair: has_learned(pair[1]))
    ]


def _in_words(comparison: Comparison, row: MethodRow, place: str) -> str:
    """The mean return of these runs beside that of doing nothing, and what follows from it."""

    def mean(returns: Sequence[float]) -> str:
        return number(sum(returns) / len(returns), decimals=comparison.decimals)

    idle = learned_nothing(row)
    own = mean([run.clean.mean for run in idle])
    floors = grouped((found.doing, found.outcome.mean) for run in idle if (found := floor(run)))
    nothing = " and ".join(f"{what} {mean(means)}" for what, means in floors.items())
    side = " against the pool" if comparison.pool else ""
    who, then = row.method.label, " and is not ranked"
    if len(idle) < len(row.runs):
        who = f"{len(idle)} of {len(row.runs)} runs of {who}"
        then = "; the method's mean includes " + ("it" if len(idle) == 1 else "them")
        then = then if has_learned(row) else ", and the method is not ranked"
    return f"{who} learned nothing{place}{side} (return {own}, {nothing}){then}."
