"""Clean against robust return: the methods that no other beats in both, and the area that they dominate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from marl_aajr.core.checks import decimals_of, grouped
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import Estimate, Sheet, listing, number, size
from marl_aajr.report.figures import axis_range
from marl_aajr.report.ranking import ranked
from marl_aajr.report.scores import Reference
from marl_aajr.report.style import MUTED, Look, Panel, svg


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
    """Pareto front and hypervolumes of the ranked methods at one ε; without a reference for this page only.

    Then the volumes are measured from the lowest return of any run, clean and robust.
    """
    rows = ranked(comparison)
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
    """One panel per size, of the ranked methods: clean return across, return under the worst attack up."""
    panels = []
    for i, one in enumerate(found):
        points = ((row, _point(row, one.epsilon)) for row in ranked(comparison))
        shown = (
            (row.method.label, *(number(x, decimals=comparison.decimals) for x in point))
            for row, point in points
        )
        where = "; ".join(f"{label} {clean} clean, {robust} under attack" for label, clean, robust in shown)
        at, front = size(one.epsilon), listing(one.front)
        alt = f"Clean against robust return at {at}. {where}. Not beaten: {front}."
        drawing = _pareto(ranked(comparison), looks, one, key=f"{key}{i}")
        panels.append(Panel(at, drawing, alt, f"Not beaten by any other: {front}."))
    return tuple(panels)


def _pareto(rows: Sequence[MethodRow], looks: Sequence[Look], found: Tradeoff, *, key: str) -> Markup:
    """Bars are intervals, small dots are runs, the grey stairs are the front."""
    epsilon = found.epsilon
    by_label = {row.method.label: row for row in rows}

    def limits(of: Callable[[MethodRow], Estimate], at: float) -> tuple[float, float]:
        return axis_range([of(row) for row in rows], [r for row in rows for r in row.returns(at)], air=0.08)

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
        axes.set(xlabel="clean return", ylabel=f"worst return, {size(epsilon)}")
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
