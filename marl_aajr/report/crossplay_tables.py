"""Cross-play: every method against every opponent of the pool, clean and under attack, and ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from marl_aajr.evaluation.crossplay import CrossPlay, TeamRating
from marl_aajr.evaluation.intervals import LEVEL
from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import (
    NOTHING,
    Block,
    Cell,
    Estimate,
    Line,
    Sheet,
    estimate_of,
    estimated,
    marked,
    number,
    shaded,
    size,
)
from marl_aajr.report.ranking import ranked, unranked
from marl_aajr.report.run_results import PoolResults, RunResults

_Met = Callable[[RunResults], Outcome]
"""The returns of a run against somebody."""


def cross_play(comparison: Comparison) -> tuple[Block, ...]:
    """Without an attack and by size: a line for each opponent, their mean, their worst, and the own side.

    The last cell of a line is the mean over the ranked methods. Empty without a pool.
    """
    sizes = (0.0, *comparison.epsilons) if comparison.pool else ()
    return tuple(
        Block(
            f"Worst attack, {size(epsilon)}" if epsilon else "No attack", tuple(_lines(comparison, epsilon))
        )
        for epsilon in sizes
    )


def ratings(comparison: Comparison, *, resamples: int = 100) -> tuple[Block, ...]:
    """Nash averaging and Elo of the ranked methods, without an attack and at the largest size.

    Empty without a pool of several opponents, and for fewer than two methods.
    """
    rows = ranked(comparison)
    if len(comparison.pool) < 2 or len(rows) < 2:
        return ()
    return tuple(_rated(comparison, rows, epsilon, resamples) for epsilon in (0.0, comparison.epsilons[-1]))


def between_seeds(comparison: Comparison) -> tuple[Sheet, ...]:
    """The runs of each method with members of each other's teams, as far as all of them met; else empty.

    On the diagonal a run plays by itself.
    """
    found = ((row.method.label, _seeds_met(row)) for row in comparison.rows)
    return tuple(_matrix(label, met, comparison.decimals) for label, met in found if met is not None)


def _seeds_met(row: MethodRow) -> CrossPlay | None:
    played = {f"s{run.run.seed}": rows for run in row.runs for rows, _ in run.played}
    met = [
        {each.source for each in rows.adversarial_agents if each.kind == "partner"}
        for rows in played.values()
    ]
    whole = all(played.keys() - {seed} <= others for seed, others in zip(played, met, strict=True))
    return CrossPlay.between(played) if whole and len(played) > 1 else None


def _matrix(label: str, met: CrossPlay, decimals: int) -> Sheet:
    lines = []
    for i, line in enumerate(met.matrix.tolist()):
        others = float(np.mean([value for j, value in enumerate(line) if j != i]))
        lines.append((met.teams[i], *(number(value, decimals=decimals) for value in (*line, others))))
    caption = f"{label}: mean return of each seed with a member of another one in each place in turn."
    return Sheet(caption, ("seed", *met.opponents, "mean of the others"), tuple(lines))


def _rated(comparison: Comparison, rows: Sequence[MethodRow], epsilon: float, resamples: int) -> Block:
    played = CrossPlay(
        tuple(row.method.label for row in rows),
        comparison.pool,
        tuple(
            np.array([[run.pool[n].under(epsilon).returns for n in comparison.pool] for run in row.runs])
            for row in rows
        ),
        epsilon,
    )
    found = {rating.team: rating for rating in played.ratings(resamples=resamples)}
    given = [found.get(row.method.label) for row in comparison.rows]

    def line(header: str, cell: Callable[[TeamRating], Cell]) -> Line:
        return Line(header, tuple(NOTHING if rating is None else cell(rating) for rating in given))

    chosen = "" if played.unique else ", one of several: the widest is taken"
    title = f"Worst attack, {size(epsilon)}" if epsilon else "No attack"
    return Block(
        title,
        (
            line(f"Nash averaging{chosen}", lambda r: _between(r.nash, r.nash_interval, comparison.decimals)),
            line("share of the equilibrium", lambda r: Cell(f"{100 * r.weight:.0f} %")),
            line("first in resampled runs", lambda r: _percent(r.first)),
            line("Elo", lambda r: _between(r.elo, r.elo_interval, 0)),
        ),
    )


def _between(value: float, ends: tuple[float, float] | None, decimals: int) -> Cell:
    low, high = ends or (None, None)
    return estimated(Estimate(value, low, high, (), "runs", LEVEL), decimals=decimals)


def _percent(share: float | None) -> Cell:
    return NOTHING if share is None else Cell(f"{100 * share:.0f} %")


def lowest_and_highest(comparison: Comparison) -> tuple[float, float]:
    """The returns at the two ends of the shading."""
    means = [
        _estimate(comparison, row, _against(name, epsilon)).mean
        for name in comparison.pool
        for epsilon in (0.0, *comparison.epsilons)
        for row in comparison.rows
    ]
    return min(means), max(means)


def _lines(comparison: Comparison, epsilon: float) -> Iterator[Line]:
    cell = partial(shaded, ends=lowest_and_highest(comparison), decimals=comparison.decimals)
    for name in comparison.pool:
        yield _line(comparison, name, _against(name, epsilon), cell)
    mean = marked(
        "mean over the pool",
        comparison.rows,
        lambda row: _estimate(comparison, row, lambda run: run.under(epsilon)),
        decimals=comparison.decimals,
        unranked=unranked(comparison),
    )
    yield replace(mean, cells=(*mean.cells, _marginal(comparison, lambda run: run.under(epsilon))))
    if len(comparison.pool) > 1:
        yield _worst(comparison, epsilon)
    yield _line(comparison, "own side (does not count)", lambda run: run.own_side.under(epsilon))


def _line(
    comparison: Comparison, header: str, met: _Met, cell: Callable[[Estimate], Cell] | None = None
) -> Line:
    shown = cell or partial(estimated, decimals=comparison.decimals)
    cells = [shown(_estimate(comparison, row, met)) for row in comparison.rows]
    return Line(header, (*cells, _marginal(comparison, met)))


def _worst(comparison: Comparison, epsilon: float) -> Line:
    """Of each run its own worst member; named is that of most runs."""

    def member(run: RunResults) -> str:
        assert isinstance(run, PoolResults)
        return run.worst_member(epsilon)

    def met(run: RunResults) -> Outcome:
        return run.pool[member(run)].under(epsilon)

    line = _line(comparison, "worst of the pool", met)
    names = [Counter(map(member, row.runs)).most_common(1)[0][0] for row in comparison.rows]
    cells = [replace(cell, note=name) for cell, name in zip(line.cells, names, strict=False)]
    return Line(line.header, (*cells, line.cells[-1]))


def _against(name: str, epsilon: float) -> _Met:
    return lambda run: run.pool[name].under(epsilon)


def _estimate(comparison: Comparison, row: MethodRow, met: _Met) -> Estimate:
    return estimate_of([met(run) for run in row.runs], level=comparison.protocol.level)


def _marginal(comparison: Comparison, met: _Met) -> Cell:
    rows = ranked(comparison) or comparison.rows
    means = [_estimate(comparison, row, met).mean for row in rows]
    return Cell(number(float(np.mean(means)), decimals=comparison.decimals))
