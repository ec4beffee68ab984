"""Clean against robust return: which methods no other beats in both, and how much the best ones cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marl_aajr.evaluation.statistics import hypervolume, pareto_front
from marl_aajr.report import figures
from marl_aajr.report.cells import Sheet
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.figures import Cloud
from marl_aajr.report.palette import Look
from marl_aajr.report.panels import Panel
from marl_aajr.report.scores import Reference, returns
from marl_aajr.report.wording import listing, number


@dataclass(frozen=True)
class Tradeoff:
    """The methods at one size of attack.

    Attributes:
        epsilon: the size.
        front: labels of the methods that no other beats, by clean return.
        reference: (clean, robust) from which the hypervolumes are measured.
        volumes: per method name, over its settings, the area that its points dominate, in return².
        whole: that of all methods together.
    """

    epsilon: float
    front: tuple[str, ...]
    reference: tuple[float, float]
    volumes: dict[str, float]
    whole: float


def tradeoff(comparison: Comparison, epsilon: float, reference: Reference | None) -> Tradeoff:
    """Pareto front and hypervolumes at one ε.

    Without a reference the volumes are measured from the lowest return of any run, clean and robust: fit to
    compare on this page only.
    """
    rows = comparison.rows
    points = [_point(row, epsilon) for row in rows]
    if reference is None:
        corner = tuple(min(min(returns(row, e)) for row in rows) for e in (0.0, epsilon))
        origin = (corner[0], corner[1])
    else:
        origin = (reference.floor, reference.floor)
    names = dict.fromkeys(row.method.name for row in rows)
    return Tradeoff(
        epsilon,
        tuple(rows[i].method.label for i in pareto_front(points)),
        origin,
        {
            name: hypervolume([_point(r, epsilon) for r in rows if r.method.name == name], reference=origin)
            for name in names
        },
        hypervolume(points, reference=origin),
    )


def panels(
    comparison: Comparison, looks: Sequence[Look], found: Sequence[Tradeoff], *, decimals: int, key: str
) -> tuple[Panel, ...]:
    """One picture per size: clean return across, return under the worst attack up."""
    rows = comparison.rows
    drawn = []
    for i, one in enumerate(found):
        clouds = [
            Cloud(
                row.clean,
                row.worst_return(one.epsilon),
                tuple(zip(returns(row, 0.0), returns(row, one.epsilon), strict=True)),
            )
            for row in rows
        ]
        front = [i for label in one.front for i, row in enumerate(rows) if row.method.label == label]
        svg = figures.pareto_panel(
            clouds, looks, front=front, ylabel=f"worst return, ε = {one.epsilon:g}", key=f"{key}{i}"
        )
        where = "; ".join(
            f"{row.method.label} {number(row.clean.mean, decimals=decimals)} clean, "
            f"{number(row.worst_return(one.epsilon).mean, decimals=decimals)} under attack"
            for row in rows
        )
        alt = (
            f"Clean against robust return at ε = {one.epsilon:g}. {where}. Not beaten: {listing(one.front)}."
        )
        drawn.append(
            Panel(f"ε = {one.epsilon:g}", svg, alt, f"Not beaten by any other: {listing(one.front)}.")
        )
    return tuple(drawn)


def _point(row: Row, epsilon: float) -> tuple[float, float]:
    return row.clean.mean, row.worst_return(epsilon).mean


def sheet(found: Sequence[Tradeoff], *, decimals: int) -> Sheet | None:
    """The hypervolumes: a line per size, a column per method name; None where every area is zero."""
    if not any(one.whole for one in found):
        return None
    names = list(found[0].volumes)
    lines = tuple(
        (
            f"ε = {one.epsilon:g}",
            *(number(one.volumes[name], decimals=decimals) for name in names),
            number(one.whole, decimals=decimals),
            f"({', '.join(number(value, decimals=decimals) for value in one.reference)})",
        )
        for one in found
    )
    columns = ("size", *names, "all together", "measured from (clean, worst)")
    return Sheet(
        "Hypervolume: the area that the settings of each method dominate, in return².", columns, lines
    )
