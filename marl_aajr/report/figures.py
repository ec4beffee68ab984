"""Draw one small panel per figure.

Small panels, because the page sets them side by side on a desk and one below the other on a
phone, where a wide figure would shrink until nobody could read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from marl_aajr.report.comparison import Row
from marl_aajr.report.curves import Array, Curve, mean_of, thinned
from marl_aajr.report.drawing import svg
from marl_aajr.report.palette import MUTED, Look
from marl_aajr.report.statistics import Estimate

_LOG_RATIO = 300.0


class Series(NamedTuple):
    """Return against ε of one method.

    Attributes:
        epsilons: rising from 0, no attack.
        points: at those.
        runs: of each run, its returns at those.
    """

    epsilons: tuple[float, ...]
    points: tuple[Estimate, ...]
    runs: tuple[tuple[float, ...], ...]


def epsilon_panel(
    series: Sequence[Series], looks: Sequence[Look], *, limits: tuple[float, float], key: str
) -> Markup:
    """Return against ε, ε = 0 being the clean return; intervals shaded.

    Args:
        series: one per method.
        looks: one per method.
        limits: of the return axis, the same for all attacks so that they can be compared.
        key: unique in the page.
    """

    def draw(axes: Axes) -> None:
        for one, look in zip(series, looks, strict=True):
            _draw_series(axes, one, look)
        axes.set(xlabel="ε (0 = no attack)", ylabel="return", ylim=limits)
        ticks = _spaced(series[0].epsilons)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])

    return svg(draw, key=key)


def _draw_series(axes: Axes, series: Series, look: Look) -> None:
    x, points = series.epsilons, series.points
    low = [point.mean if point.low is None else point.low for point in points]
    high = [point.mean if point.high is None else point.high for point in points]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
    if len(series.runs) > 1:
        for y in series.runs:
            axes.plot(x, y, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
    means = [point.mean for point in points]
    (line,) = axes.plot(x, means, color=look.colour, ls=look.dashes, linewidth=1.7, zorder=3)
    line.set(marker=look.marker, markersize=4.5)


class Cloud(NamedTuple):
    """Where a method stands: clean return across, robust return up.

    Attributes:
        clean: of the method.
        robust: of the method.
        runs: (clean, robust) of each run.
    """

    clean: Estimate
    robust: Estimate
    runs: tuple[tuple[float, float], ...]


def pareto_panel(
    clouds: Sequence[Cloud], looks: Sequence[Look], *, front: Sequence[int], ylabel: str, key: str
) -> Markup:
    """Clean against robust return: bars are intervals, small dots runs, the grey stairs the front.

    Args:
        clouds: one per method.
        looks: one per method.
        front: places of the methods that no other beats, by clean return.
        ylabel: of the robust return.
        key: unique in the page.
    """

    def draw(axes: Axes) -> None:
        for cloud, look in zip(clouds, looks, strict=True):
            _draw_cloud(axes, cloud, look)
        (left, right), (bottom, top) = (_range(clouds, along) for along in (0, 1))
        across = [clouds[i].clean.mean for i in front]
        up = [clouds[i].robust.mean for i in front]
        stairs = [left, *across, across[-1]], [up[0], *up, bottom]
        axes.step(*stairs, where="pre", color=MUTED, linewidth=0.9, zorder=1)
        axes.set(xlabel="clean return", ylabel=ylabel, xlim=(left, right), ylim=(bottom, top))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, key=key)


def _draw_cloud(axes: Axes, cloud: Cloud, look: Look) -> None:
    clean, robust = cloud.clean, cloud.robust
    if clean.low is not None and clean.high is not None:
        axes.hlines(robust.mean, clean.low, clean.high, color=look.colour, linewidth=0.8, alpha=0.7)
    if robust.low is not None and robust.high is not None:
        axes.vlines(clean.mean, robust.low, robust.high, color=look.colour, linewidth=0.8, alpha=0.7)
    if len(cloud.runs) > 1:
        axes.plot(*zip(*cloud.runs, strict=True), ".", color=look.colour, alpha=0.5, markersize=3, zorder=3)
    axes.plot(clean.mean, robust.mean, look.marker, color=look.colour, markersize=6, zorder=4)


def _range(clouds: Sequence[Cloud], along: int) -> tuple[float, float]:
    """Of one axis, so that every mean, run and interval is on it, with some air."""
    points = [(cloud.clean, cloud.robust)[along] for cloud in clouds]
    ends = [e for p in points for e in (p.mean, p.low, p.high) if e is not None]
    ends += [run[along] for cloud in clouds for run in cloud.runs]
    air = 0.08 * (max(ends) - min(ends)) or 1.0
    return min(ends) - air, max(ends) + air


def profile_panel(
    profiles: Sequence[tuple[Array, Array]], looks: Sequence[Look], *, xlabel: str, key: str
) -> Markup:
    """Performance profiles: the share of runs that score above each threshold.

    Args:
        profiles: per method, thresholds and shares.
        looks: one per method.
        xlabel: of the thresholds.
        key: unique in the page.
    """

    def draw(axes: Axes) -> None:
        for (tau, share), look in zip(profiles, looks, strict=True):
            axes.step(tau, share, where="post", color=look.colour, ls=look.dashes, linewidth=1.7)
        axes.set(xlabel=xlabel, ylabel="share of runs above", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, key=key)


def learning_panel(
    curves: Sequence[Sequence[Curve]], looks: Sequence[Look], *, ylabel: str, from_zero: bool, key: str
) -> Markup:
    """Curves over environment steps: every run thin, the mean of a method's runs thick.

    The value axis is logarithmic where all values are positive and span a factor of 300.

    Args:
        curves: per method, one curve per run; a method may have none.
        looks: one per method.
        ylabel: of the value axis.
        from_zero: whether the axis of values that are never negative starts at zero.
        key: unique in the page.
    """

    def draw(axes: Axes) -> None:
        for runs, look in zip(curves, looks, strict=True):
            if not runs:
                continue
            if len(runs) > 1:
                for x, y in map(thinned, runs):
                    axes.plot(x, y, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
            x, y = thinned(mean_of(runs))
            marker = look.marker if len(x) == 1 else ""
            axes.plot(x, y, color=look.colour, ls=look.dashes, linewidth=1.7, marker=marker, zorder=3)
        axes.set(xlabel="environment steps", ylabel=ylabel)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if is_logarithmic(curves):
            axes.set_yscale("log")
            return
        axes.yaxis.set_major_locator(MaxNLocator(5))
        values = _values(curves)
        if from_zero and values.size and values.min() >= 0:
            axes.set_ylim(0, 1.08 * values.max() or 1.0)

    return svg(draw, key=key)


def is_logarithmic(curves: Sequence[Sequence[Curve]]) -> bool:
    """Whether a value axis is better logarithmic: all positive, over a factor of 300."""
    values = _values(curves)
    return bool(values.size and values.min() > 0 and values.max() > _LOG_RATIO * values.min())


def return_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Range of the return axis that holds every mean, run and interval, with some air."""
    ends = [
        end
        for row in rows
        for point in (row.clean, *row.robust.values(), *row.strongest.values())
        for end in (point.mean, point.low, point.high)
        if end is not None
    ]
    ends += [o.mean for row in rows for run in row.runs for o in (run.clean, *run.attacked.values())]
    air = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - air, max(ends) + air


def _values(curves: Sequence[Sequence[Curve]]) -> Array:
    """All finite values together."""
    return np.concatenate([np.empty(0), *(y[np.isfinite(y)] for runs in curves for _, y in runs)])


def _spaced(ticks: Sequence[float]) -> list[float]:
    """Leave out tick labels that would run into each other."""
    gap = (ticks[-1] - ticks[0]) / 8
    result = [ticks[0]]
    for tick in ticks[1:]:
        if tick - result[-1] >= gap:
            result.append(tick)
    return result
