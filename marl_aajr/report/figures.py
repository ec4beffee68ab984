"""The figures of returns: return against ε, and clean against robust return.

Panels are small, because the page sets them side by side on a desk and one below the other on a phone, where
a wide figure would shrink until nobody could read it. Each has a description for those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from marl_aajr.core.checks import METRIC_DECIMALS, decimals_of, grouped
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.conditions import Condition, unlimited
from marl_aajr.report.estimates import Estimate, Sheet, listing, number, size
from marl_aajr.report.scores import Reference
from marl_aajr.report.style import MUTED, Look, Panel, draw_lines, svg


class _Series(NamedTuple):
    """Return against ε of one method: ε rising from 0 (no attack), the estimates there, those of each run."""

    epsilons: tuple[float, ...]
    points: tuple[Estimate, ...]
    runs: tuple[tuple[float, ...], ...]


def worst_case(comparison: Comparison, looks: Sequence[Look], *, key: str) -> Panel:
    """The picture of the whole comparison: return under the worst attack of each size."""
    series = [_series(row) for row in comparison.rows]
    drawing = _against_epsilon(series, looks, limits=_return_limits(comparison.rows), key=key)
    alt = f"Return under the worst attack against ε. {_spelled(comparison, series)}."
    return Panel("Return under the worst attack", drawing, alt)


def robustness(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """One panel per attack on everybody at every step: return against ε, all on the same return axis."""
    limits = _return_limits(comparison.rows)
    by_attack = grouped((c.attack, (c.epsilon, c)) for c in unlimited(comparison.conditions))
    panels = []
    for i, (attack, at) in enumerate(by_attack.items()):
        series = [_series(row, dict(at)) for row in comparison.rows]
        drawing = _against_epsilon(series, looks, limits=limits, key=f"{key}{i}")
        alt = f"Return against ε under {attack}. {_spelled(comparison, series)}."
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
                tuple(
                    tuple((run.strongest(e) if e else run.clean).metrics[name].mean for e in sizes)
                    for run in row.runs
                ),
            )
            for row in comparison.rows
        ]
        means = [point.mean for one in series for point in one.points]
        limits = min(0.0, *means) - 0.03, max(1.0, *means) + 0.03
        drawing = _against_epsilon(series, looks, limits=limits, key=f"{key}{i}", unit=name)
        said = _spelled(comparison, series, METRIC_DECIMALS)
        alt = f"{name} against ε under each run's worst attack. {said}."
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
) -> Markup:
    """Intervals are shaded; runs are thin lines where there are several."""

    def draw(axes: Axes) -> None:
        for one, look in zip(series, looks, strict=True):
            x, points = one.epsilons, one.points
            low = [point.mean if point.low is None else point.low for point in points]
            high = [point.mean if point.high is None else point.high for point in points]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
            means = [point.mean for point in points]
            draw_lines(axes, look, [(x, y) for y in one.runs], (x, means), marker=look.marker, markersize=4.5)
        axes.set(xlabel="ε (0 = no attack)", ylabel=unit, ylim=limits)
        ticks = _spaced(series[0].epsilons)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])

    return svg(draw, key=key)


def _return_limits(rows: Sequence[MethodRow]) -> tuple[float, float]:
    """Range of the return axis that holds every mean, run and interval."""
    points = [p for row in rows for p in (row.clean, *row.robust.values(), *row.worst_return.values())]
    runs = [o.mean for row in rows for run in row.runs for o in (run.clean, *run.attacked.values())]
    return _range(points, runs, air=0.05)


def _range(points: Sequence[Estimate], runs: Sequence[float], *, air: float) -> tuple[float, float]:
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


def _spelled(comparison: Comparison, series: Sequence[_Series], decimals: int | None = None) -> str:
    """Every point in words."""
    said, decimals = [], comparison.decimals if decimals is None else decimals
    for row, one in zip(comparison.rows, series, strict=True):
        clean, *attacked = (number(point.mean, decimals=decimals) for point in one.points)
        at = ", ".join(f"{value} at {e:g}" for value, e in zip(attacked, one.epsilons[1:], strict=True))
        said.append(f"{row.method.label} {clean} without attack, {at}")
    return "; ".join(said)


@dataclass(frozen=True)
class Tradeoff:
    """Clean against robust return at one ε: the `front` of the methods that no other beats in both.

    The volumes are areas in return² above a `reference` point (clean, robust): that which the settings of
    each method name dominate, and that of the `whole` of all methods.
    """

    epsilon: float
    front: tuple[str, ...]
    reference: tuple[float, float]
    volumes: dict[str, float]
    whole: float


def tradeoff(comparison: Comparison, epsilon: float, reference: Reference | None) -> Tradeoff:
    """Pareto front and hypervolumes at one ε; without a reference to compare on this page only.

    Then the volumes are measured from the lowest return of any run, clean and robust.
    """
    rows = comparison.rows
    points = [_point(row, epsilon) for row in rows]
    if reference is None:
        clean, robust = (min(min(row.returns(e)) for row in rows) for e in (0.0, epsilon))
    else:
        clean = robust = reference.floor
    corner = clean, robust
    by_name = grouped((row.method.name, point) for row, point in zip(rows, points, strict=True))
    return Tradeoff(
        epsilon,
        tuple(rows[i].method.label for i in pareto_front(points)),
        corner,
        {name: hypervolume(own, reference=corner) for name, own in by_name.items()},
        hypervolume(points, reference=corner),
    )


def _point(row: MethodRow, epsilon: float) -> tuple[float, float]:
    return row.clean.mean, row.worst_return[epsilon].mean


def pareto_front(points: ArrayLike) -> list[int]:
    """Indices of the points that no other beats, by their first coordinate; both are to be large.

    A point (clean return, robust return) of `[n, 2]` is beaten where another is at least as good in both and
    better in one. Equal points stay.
    """
    p = np.asarray(points, np.float64).reshape(-1, 2)
    no_worse = (p[:, None, :] >= p[None, :, :]).all(-1)
    better = (p[:, None, :] > p[None, :, :]).any(-1)
    beaten = (no_worse & better).any(0)
    return sorted(np.flatnonzero(~beaten).tolist(), key=lambda i: (p[i, 0], i))


def hypervolume(points: ArrayLike, *, reference: tuple[float, float]) -> float:
    """Area that the points `[n, 2]` dominate above a reference point fixed beforehand, in return².

    The reference (clean, robust) is what every method should reach, such as a random policy's returns; points
    below it in either coordinate count for nothing.
    """
    p = np.asarray(points, np.float64).reshape(-1, 2) - np.asarray(reference, np.float64)
    p = p[(p > 0).all(-1)]
    area, left = 0.0, 0.0
    for i in pareto_front(p):
        clean, robust = p[i]
        area += (clean - left) * robust
        left = clean
    return float(area)


def clean_against_robust(
    comparison: Comparison, looks: Sequence[Look], found: Sequence[Tradeoff], *, key: str
) -> tuple[Panel, ...]:
    """One panel per size: clean return across, return under the worst attack up."""
    panels = []
    for i, one in enumerate(found):
        points = ((row, _point(row, one.epsilon)) for row in comparison.rows)
        shown = (
            (row.method.label, *(number(x, decimals=comparison.decimals) for x in point))
            for row, point in points
        )
        where = "; ".join(f"{label} {clean} clean, {robust} under attack" for label, clean, robust in shown)
        at, front = size(one.epsilon), listing(one.front)
        alt = f"Clean against robust return at {at}. {where}. Not beaten: {front}."
        drawing = _pareto(comparison.rows, looks, one, key=f"{key}{i}")
        panels.append(Panel(at, drawing, alt, f"Not beaten by any other: {front}."))
    return tuple(panels)


def _pareto(rows: Sequence[MethodRow], looks: Sequence[Look], found: Tradeoff, *, key: str) -> Markup:
    """Bars are intervals, small dots are runs, the grey stairs are the front."""
    epsilon = found.epsilon
    by_label = {row.method.label: row for row in rows}

    def limits(of: Callable[[MethodRow], Estimate], at: float) -> tuple[float, float]:
        return _range([of(row) for row in rows], [r for row in rows for r in row.returns(at)], air=0.08)

    def draw(axes: Axes) -> None:
        for row, look in zip(rows, looks, strict=True):
            x, y = row.clean, row.worst_return[epsilon]
            if x.low is not None and x.high is not None:
                axes.hlines(y.mean, x.low, x.high, color=look.colour, linewidth=0.8, alpha=0.7)
            if y.low is not None and y.high is not None:
                axes.vlines(x.mean, y.low, y.high, color=look.colour, linewidth=0.8, alpha=0.7)
            if len(row.runs) > 1:
                runs = row.returns(0.0), row.returns(epsilon)
                axes.plot(*runs, ".", color=look.colour, alpha=0.5, markersize=3, zorder=3)
            axes.plot(x.mean, y.mean, look.marker, color=look.colour, markersize=6, zorder=4)
        left, right = limits(lambda row: row.clean, 0.0)
        bottom, top = limits(lambda row: row.worst_return[epsilon], epsilon)
        across, up = zip(*(_point(by_label[label], epsilon) for label in found.front), strict=True)
        stairs = [left, *across, across[-1]], [up[0], *up, bottom]
        axes.step(*stairs, where="pre", color=MUTED, linewidth=0.9, zorder=1)
        axes.set(xlabel="clean return", ylabel=f"worst return, ε = {epsilon:g}")
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, key=key)


def hypervolumes(found: Sequence[Tradeoff]) -> Sheet | None:
    """The hypervolumes: a line per size, a column per method name; None where every area is zero."""
    if not any(one.whole for one in found):
        return None
    names = list(found[0].volumes)
    areas = decimals_of(one.whole for one in found)
    returns = decimals_of(value for one in found for value in one.reference)
    lines = tuple(
        (
            size(one.epsilon),
            *(number(one.volumes[name], decimals=areas) for name in names),
            number(one.whole, decimals=areas),
            f"({', '.join(number(value, decimals=returns) for value in one.reference)})",
        )
        for one in found
    )
    columns = ("size", *names, "all together", "measured from (clean, worst)")
    return Sheet(
        "Hypervolume: the area that the settings of each method dominate, in return².", columns, lines
    )
