"""Returns with other dynamics: arguments of the environment over several values (`evaluate --vary`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.threats import ThreatOutcome, curves
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.estimates import (
    NOTHING,
    Block,
    Cell,
    Estimate,
    Line,
    estimate_of,
    estimated,
    number,
)
from marl_aajr.report.figures import axis_range
from marl_aajr.report.run_results import RunResults
from marl_aajr.report.style import Look, Panel, draw_lines, svg

_Curves = Mapping[str, Mapping[Any, ThreatOutcome]]
"""By argument and value."""


def dynamics(comparison: Comparison) -> tuple[Block, ...]:
    """Of each argument the return with each value, their mean and the worst; empty without any."""
    rows = _rows(comparison)
    blocks = []
    for argument, values in _varied(rows).items():
        lines = [
            Line(str(value), tuple(_cell(comparison, row, argument, value) for row in rows))
            for value in values
        ]
        ends = [_ends(comparison, row, argument) for row in rows]
        lines.append(Line("mean of these", tuple(mean for mean, _ in ends)))
        lines.append(Line("worst of these", tuple(worst for _, worst in ends)))
        blocks.append(Block(argument, tuple(lines)))
    return tuple(blocks)


def dynamics_curves(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """The return against each argument whose values are numbers: a panel for each."""
    rows, panels = _rows(comparison), []
    for i, (argument, values) in enumerate(_varied(rows).items()):
        numbers = [
            value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(numbers) < 2 or len(numbers) < len(values):
            continue
        series = [_series(comparison, row, argument, sorted(numbers)) for row in rows]
        panels.append(_panel(comparison, argument, series, looks, key=f"{key}{i}"))
    return tuple(panels)


_Series = tuple[list[Any], list[Estimate], list[list[float]]]
"""Values that all runs of a method have, the estimates there, and each run's returns."""


def _series(comparison: Comparison, row: Sequence[_Curves], argument: str, values: Sequence[Any]) -> _Series:
    known = [value for value in values if row and all(value in run.get(argument, {}) for run in row)]
    points = [_estimate(comparison, [run[argument][value] for run in row]) for value in known]
    return known, points, [[run[argument][value].mean for value in known] for run in row]


def _panel(
    comparison: Comparison, argument: str, series: Sequence[_Series], looks: Sequence[Look], *, key: str
) -> Panel:
    points = [point for _, own, _ in series for point in own]
    limits = axis_range(points, [mean for *_, runs in series for run in runs for mean in run], air=0.05)

    def draw(axes: Axes) -> None:
        for (x, own, runs), look in zip(series, looks, strict=True):
            if not x:
                continue
            low = [point.mean if point.low is None else point.low for point in own]
            high = [point.mean if point.high is None else point.high for point in own]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
            means = [point.mean for point in own]
            draw_lines(axes, look, [(x, run) for run in runs], (x, means), marker=look.marker, markersize=4.5)
        axes.set(xlabel=argument, ylabel="return", ylim=limits)

    said = [
        f"{row.method.label} "
        + ", ".join(
            f"{number(p.mean, decimals=comparison.decimals)} at {v:g}" for v, p in zip(x, own, strict=True)
        )
        for row, (x, own, _) in zip(comparison.rows, series, strict=True)
        if x
    ]
    return Panel(argument, svg(draw, key=key), f"Return against {argument}. {'; '.join(said)}.")


def _rows(comparison: Comparison) -> list[list[_Curves]]:
    """Method by method and run by run, what was varied."""
    return [[_of_run(run, comparison) for run in row.runs] for row in comparison.rows]


def _of_run(run: RunResults, comparison: Comparison) -> _Curves:
    """On the episodes of the comparison."""
    asked = comparison.protocol
    found: dict[str, dict[Any, ThreatOutcome]] = {}
    for rows, evaluation in run.played:
        played = rows.actions, evaluation.episodes, evaluation.seed, evaluation.num_envs
        if played != (asked.actions, asked.episodes, asked.seed, asked.num_envs):
            continue
        for curve in curves(rows.threats):
            found.setdefault(curve.argument, {}).update(zip(curve.values, curve.rows, strict=True))
    return found


def _varied(rows: Sequence[Sequence[_Curves]]) -> dict[str, list[Any]]:
    """Every argument and its values, as they were met first; numbers in their order."""
    found: dict[str, dict[Any, None]] = {}
    for run in (run for row in rows for run in row):
        for argument, values in run.items():
            found.setdefault(argument, {}).update(dict.fromkeys(values))
    return {a: sorted(v, key=lambda x: (isinstance(x, str), x)) for a, v in found.items()}


def _estimate(comparison: Comparison, outcomes: Sequence[Outcome]) -> Estimate:
    return estimate_of(outcomes, level=comparison.protocol.level)


def _cell(comparison: Comparison, row: Sequence[_Curves], argument: str, value: Any) -> Cell:
    known = [run[argument][value] for run in row if value in run.get(argument, {})]
    if not known:
        return NOTHING
    note = "" if len(known) == len(row) else f"{len(known)} of {len(row)} runs"
    return estimated(_estimate(comparison, known), decimals=comparison.decimals, note=note)


def _ends(comparison: Comparison, row: Sequence[_Curves], argument: str) -> tuple[Cell, Cell]:
    """The mean over the values, and the value with the least mean over runs."""
    values = sorted(set.intersection(*(set(run.get(argument, {})) for run in row)), key=str) if row else []
    if not values:
        return NOTHING, NOTHING
    means = {value: float(np.mean([run[argument][value].mean for run in row])) for value in values}
    worst = min(means, key=lambda value: means[value])
    decimals = comparison.decimals
    return (
        Cell(number(float(np.mean(list(means.values()))), decimals=decimals)),
        Cell(number(means[worst], decimals=decimals), note=f"at {worst}"),
    )
