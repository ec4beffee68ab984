"""Turn the metrics of runs into curves over environment steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marl_aajr.report.methods import Method
from marl_aajr.report.records import Iteration, RunRecord

Array = NDArray[np.float64]
Curve = tuple[Array, Array]
"""Environment steps [n] and values [n]; NaN where a value was logged but is not finite."""


MOST_POINTS = 200
"""Of a drawn curve."""


@dataclass(frozen=True)
class Metric:
    """A metric of the regulariser that the page plots.

    Attributes:
        key: its name in metrics.jsonl.
        title: its name on the page.
        meaning: one sentence for the caption.
    """

    key: str
    title: str
    meaning: str


SECONDS = "aajr/seconds"
METRICS = (
    Metric("aajr/penalty", "Penalty R", "Mean penalty over rows and inner steps, before λ."),
    Metric("aajr/loss_share", "Share of the loss", "Part of the total loss that is the penalty."),
    Metric("aajr/gain_mean", "Gain, mean", "Mean of ‖J u‖ along the ascent directions."),
    Metric("aajr/gain_max", "Gain, maximum", "Largest ‖J u‖ along the ascent directions."),
    Metric(
        "aajr/objective_gain",
        "Inner objective gain",
        "How much the inner adversary raises its objective g.",
    ),
    Metric(
        "aajr/monotone_fraction",
        "Monotone inner steps",
        "Fraction of inner steps on which g did not fall.",
    ),
    Metric(
        "aajr/no_direction_fraction",
        "Rows without direction",
        "Fraction of rows whose gradient was too small to normalise.",
    ),
    Metric(SECONDS, "Share of the time", "Part of the wall time spent in the penalty."),
)


def returns(run: RunRecord, *, team: str | None = None) -> Curve:
    """Training return of a run: of all agents together, or of one team."""

    def value(row: Iteration) -> float | None:
        return row.return_mean if team is None else (row.team_returns or {}).get(team)

    return _curve(run, value)


def module_metric(run: RunRecord, *, module: str, key: str) -> Curve:
    """A metric of one module; seconds as a share of the iteration's wall time."""
    shares = _share_of_time(run) if key == SECONDS else None

    def value(row: Iteration) -> float | None:
        found = row.modules.get(module, {}).get(key)
        if found is None or shares is None:
            return found
        return found * shares[row.iteration]

    return _curve(run, value)


def teams(methods: Sequence[Method]) -> tuple[str, ...]:
    """Teams that any run scores, in order of appearance."""
    names = (
        team
        for method in methods
        for run in method.runs
        for row in run.metrics
        for team in row.team_returns or {}
    )
    return tuple(dict.fromkeys(names))


def modules(methods: Sequence[Method]) -> tuple[str, ...]:
    """Modules that any run logs a plotted metric for, in order of appearance."""
    plotted = {metric.key for metric in METRICS}
    names = (
        module
        for method in methods
        for run in method.runs
        for row in run.metrics
        for module, metrics in row.modules.items()
        if not plotted.isdisjoint(metrics)
    )
    return tuple(dict.fromkeys(names))


def mean_of(curves: Sequence[Curve]) -> Curve:
    """Mean curve over runs; linear between a run's points, only where all runs are known.

    Runs may be sampled at different steps. Values that are not finite are passed over.
    """
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    if not finite or any(not len(x) for x, _ in finite):
        return np.empty(0), np.empty(0)
    start, stop = max(x[0] for x, _ in finite), min(x[-1] for x, _ in finite)
    grid = np.unique(np.concatenate([x for x, _ in finite]))
    grid = grid[(grid >= start) & (grid <= stop)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in finite], axis=0)


def thinned(curve: Curve) -> Curve:
    """A curve of at most `MOST_POINTS` points to draw: every k-th of a longer one, and its last.

    A panel is a few hundred pixels wide; all points of long trainings would make the page heavy.
    """
    x, y = curve
    stride = -(-(len(x) - 1) // (MOST_POINTS - 1))
    if stride < 2:
        return curve
    kept = np.append(np.arange(0, len(x) - 1, stride), len(x) - 1)
    return x[kept], y[kept]


def _curve(run: RunRecord, value: Callable[[Iteration], float | None]) -> Curve:
    points = [(row.env_steps, found) for row in run.metrics if (found := value(row)) is not None]
    x = np.array([steps for steps, _ in points], dtype=np.float64)
    y = np.array([y if math.isfinite(y) else math.nan for _, y in points], dtype=np.float64)
    return x, y


def _share_of_time(run: RunRecord) -> dict[int, float]:
    """Iteration -> 1 / its wall seconds; `seconds` is cumulative."""
    shares, before = {}, 0.0
    for row in run.metrics:
        took = row.seconds - before
        shares[row.iteration] = 1.0 / took if took > 0 else math.nan
        before = row.seconds
    return shares
