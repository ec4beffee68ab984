"""The figures of returns against ε.

Panels are small, because the page sets them side by side on a desk and one below the other on a phone, where
a wide figure would shrink until nobody could read it. Each has a description for those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from marl_aajr.core.checks import METRIC_DECIMALS, grouped
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.conditions import Condition, unlimited
from marl_aajr.report.estimates import Estimate, count, number, size_name
from marl_aajr.report.ranking import floor, has_learned, own_side
from marl_aajr.report.style import MUTED, Look, Panel, draw_lines, svg


class _Series(NamedTuple):
    """Return against ε of one method: ε rising from 0 (no attack), the estimates there, those of each run."""

    epsilons: tuple[float, ...]
    points: tuple[Estimate, ...]
    runs: tuple[tuple[float, ...], ...]


def worst_case(comparison: Comparison, looks: Sequence[Look], *, key: str) -> Panel:
    """The picture of the whole comparison: return under the worst attack of each size, and of doing nothing.

    Without the methods that have learned nothing.
    """
    shown = [i for i, row in enumerate(comparison.rows) if has_learned(row)] or range(len(comparison.rows))
    rows = [comparison.rows[i] for i in shown]
    floors = [found.outcome.mean for row in rows for run in row.runs if (found := floor(run))]
    nothing = sum(floors) / len(floors) if floors else None
    series = [_series(row) for row in rows]
    points = [point for one in series for point in one.points]
    means = [mean for one in series for run in one.runs for mean in run]
    limits = axis_range(points, [*means, *([] if nothing is None else [nothing])], air=0.08)
    drawing = _against_epsilon(series, [looks[i] for i in shown], limits=limits, key=key, nothing=nothing)
    alt = f"Return under the worst attack against {size_name()}. {_spelled(comparison, rows, series)}."
    if nothing is not None:
        alt += f" A team that has learned nothing: {number(nothing, decimals=comparison.decimals)}."
    own = ", against its own side" if own_side(comparison) else ""
    own = f", mean over {count(len(comparison.pool), 'common opponent')}" if comparison.pool else own
    return Panel(f"Return under the worst attack{own}", drawing, alt)


def robustness(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """One panel per attack on everybody at every step: return against ε, all on the same return axis."""
    limits = _return_limits(comparison.rows)
    by_attack = grouped((c.attack, (c.epsilon, c)) for c in unlimited(comparison.conditions))
    panels = []
    for i, (attack, at) in enumerate(by_attack.items()):
        series = [_series(row, dict(at)) for row in comparison.rows]
        drawing = _against_epsilon(series, looks, limits=limits, key=f"{key}{i}")
        alt = f"Return against {size_name()} under {attack}. {_spelled(comparison, comparison.rows, series)}."
        panels.append(Panel(attack, drawing, alt))
    return tuple(panels)


def metrics(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """One panel for each metric that the environment reports, under the worst attack of each size."""
    sizes, panels = (0.0, *comparison.epsilons), []
    for i, name in enumerate(comparison.metrics):
        series = [
            _Series(
                sizes,
                tuple(row.metric(name, e) for e in sizes),
                tuple(tuple(run.under(e).metrics[name].mean for e in sizes) for run in row.runs),
            )
            for row in comparison.rows
        ]
        means = [point.mean for one in series for point in one.points]
        limits = min(0.0, *means) - 0.03, max(1.0, *means) + 0.03
        drawing = _against_epsilon(series, looks, limits=limits, key=f"{key}{i}", unit=name)
        said = _spelled(comparison, comparison.rows, series, METRIC_DECIMALS)
        alt = f"{name} against {size_name()} under each run's worst attack. {said}."
        panels.append(Panel(name, drawing, alt))
    return tuple(panels)


def _series(row: MethodRow, at: Mapping[float, Condition] | None = None) -> _Series:
    """Under the same attack of each size for all runs; None: for each run under its worst."""
    estimates = row.worst_return if at is None else {e: row.robust[c] for e, c in at.items()}
    runs = (
        (run.clean, *(run.attacked[at[e]] if at else run.strongest(e) for e in estimates)) for run in row.runs
    )
    return _Series(
        (0.0, *estimates),
        (row.clean, *estimates.values()),
        tuple(tuple(outcome.mean for outcome in outcomes) for outcomes in runs),
    )


def _against_epsilon(
    series: Sequence[_Series],
    looks: Sequence[Look],
    *,
    limits: tuple[float, float],
    key: str,
    unit: str = "return",
    nothing: float | None = None,
) -> Markup:
    """Intervals are shaded; runs are thin lines where there are several; dotted: what learned nothing."""

    def draw(axes: Axes) -> None:
        if nothing is not None:
            axes.axhline(nothing, color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
            across = axes.get_yaxis_transform()
            axes.text(0.01, nothing, "doing nothing", transform=across, va="top", color=MUTED, fontsize=8)
        for one, look in zip(series, looks, strict=True):
            x, points = one.epsilons, one.points
            low = [point.mean if point.low is None else point.low for point in points]
            high = [point.mean if point.high is None else point.high for point in points]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
            means = [point.mean for point in points]
            draw_lines(axes, look, [(x, y) for y in one.runs], (x, means), marker=look.marker, markersize=4.5)
        axes.set(xlabel=f"{size_name()} (0 = no attack)", ylabel=unit, ylim=limits)
        ticks = _spaced(series[0].epsilons)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])

    return svg(draw, key=key)


def _return_limits(rows: Sequence[MethodRow]) -> tuple[float, float]:
    """Range of the return axis that holds every mean, run and interval."""
    points = [p for row in rows for p in (row.clean, *row.robust.values(), *row.worst_return.values())]
    runs = [o.mean for row in rows for run in row.runs for o in (run.clean, *run.attacked.values())]
    return axis_range(points, runs, air=0.05)


def axis_range(points: Sequence[Estimate], runs: Sequence[float], *, air: float) -> tuple[float, float]:
    """Range of an axis that holds every mean, interval and run, with some air."""
    ends = [end for p in points for end in (p.mean, p.low, p.high) if end is not None] + list(runs)
    margin = air * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _spaced(ticks: Sequence[float]) -> list[float]:
    """Leave out tick labels that would run into each other."""
    gap = (ticks[-1] - ticks[0]) / 8
    result = [ticks[0]]
    for tick in ticks[1:]:
        if tick - result[-1] >= gap:
            result.append(tick)
    return result


def _spelled(
    comparison: Comparison, rows: Sequence[MethodRow], series: Sequence[_Series], decimals: int | None = None
) -> str:
    """Every point in words."""
    said, decimals = [], comparison.decimals if decimals is None else decimals
    for row, one in zip(rows, series, strict=True):
        clean, *attacked = (number(point.mean, decimals=decimals) for point in one.points)
        at = ", ".join(f"{value} at {e:g}" for value, e in zip(attacked, one.epsilons[1:], strict=True))
        said.append(f"{row.method.label} {clean} without attack, {at}")
    return "; ".join(said)
