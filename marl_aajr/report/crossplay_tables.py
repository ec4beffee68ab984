"""Cross-play: every method against every opponent of the pool, clean and under attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import (
    SHADES,
    Block,
    Cell,
    Estimate,
    Line,
    estimate_of,
    estimated,
    marked,
    number,
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
    low, high = lowest_and_highest(comparison)

    def shaded(estimate: Estimate) -> Cell:
        share = (estimate.mean - low) / (high - low) if high > low else 1.0
        cell = estimated(estimate, decimals=comparison.decimals)
        return replace(cell, shade=min(int(share * SHADES), SHADES - 1))

    for name in comparison.pool:
        yield _line(comparison, name, _against(name, epsilon), shaded)
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
    shown = cell or (lambda estimate: estimated(estimate, decimals=comparison.decimals))
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
