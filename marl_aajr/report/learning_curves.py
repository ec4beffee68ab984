"""Curves of training, return and the regulariser's metrics over environment steps, and their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from marl_aajr.core.checks import written
from marl_aajr.evaluation.outcomes import ReplacementKind
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.methods import EvaluatedRun, Method
from marl_aajr.report.run_results import RunResults
from marl_aajr.report.style import Look, Panel, draw_lines, svg
from marl_aajr.training.run_record import Iteration

Array = NDArray[np.float64]
Curve = tuple[Array, Array]
"""Environment steps [n] and values [n]; NaN where a value was logged but is not finite."""

MOST_POINTS = 200
"""The number of points that a drawn curve may have."""

_LOG_RATIO = 300.0


SECONDS = "aajr/seconds"
METRICS: Mapping[str, tuple[str, str]] = {
    "aajr/penalty": ("Penalty R", "Mean penalty over rows and inner steps, before λ."),
    "aajr/loss_share": ("Share of the loss", "Part of the total loss that is the penalty."),
    "aajr/gain_mean": ("Gain, mean", "Mean of ‖J u‖ along the ascent directions."),
    "aajr/gain_max": ("Gain, maximum", "Largest ‖J u‖ along the ascent directions."),
    "aajr/objective_gain": ("Inner objective gain", "How much the inner adversary raises its objective g."),
    "aajr/monotone_fraction": ("Monotone inner steps", "Fraction of inner steps on which g did not fall."),
    "aajr/no_direction_fraction": (
        "Rows without direction",
        "Fraction of rows whose gradient was too small to normalise.",
    ),
    SECONDS: ("Share of the time", "Part of the wall time spent in the penalty."),
}
"""Metric of the regulariser that the page plots, as metrics.jsonl names it -> title and caption."""


class ModulePanels(NamedTuple):
    """The figures of one module's metrics."""

    module: str
    panels: tuple[Panel, ...]


def training_returns(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """Training return over environment steps: one panel, or one per team where there are several."""
    found = teams([row.method for row in comparison.rows])
    sides: tuple[str | None, ...] = found if len(found) > 1 else (None,)
    panels = []
    for i, side in enumerate(sides):
        curves = _curves(comparison, partial(return_curve, team=side))
        title = "Training return" if side is None else f"Training return: {side}"
        drawing = _over_steps(curves, looks, ylabel="return", from_zero=False, key=f"{key}{i}")
        panels.append(Panel(title, drawing, _describe(title, comparison.rows, curves)))
    return tuple(panels)


_AGENTS: Mapping[ReplacementKind, str] = {
    "traitor": "Traitors",
    "opponent": "Opponents",
    "best-response": "Best responses",
}


def adversary_returns(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """Return of agents that were trained against runs, over their own steps: one panel for each kind."""
    panels = []
    for i, (kind, title) in enumerate(_AGENTS.items()):
        curves = [
            [curve for run in row.runs for curve in _of_adversaries(run, kind)] for row in comparison.rows
        ]
        if any(curves):
            drawing = _over_steps(curves, looks, ylabel="return", from_zero=False, key=f"{key}{i}")
            panels.append(Panel(title, drawing, _describe(title, comparison.rows, curves)))
    return tuple(panels)


def _of_adversaries(run: RunResults, kind: ReplacementKind) -> Iterator[Curve]:
    for row in (row for rows, _ in run.played for row in rows.adversarial_agents):
        if row.met_as == kind and row.training is not None and row.training.curve:
            steps, returns = np.array(row.training.curve, dtype=np.float64).T
            yield steps, returns


def logging_rows(comparison: Comparison) -> tuple[MethodRow, ...]:
    """Rows whose runs log metrics of a regulariser."""
    return tuple(row for row in comparison.rows if modules([row.method]))


def regulariser_metrics(
    comparison: Comparison, looks: Sequence[Look], *, key: str
) -> tuple[ModulePanels, ...]:
    """Per module, one panel per metric of the regulariser that any method logs; of several teams, by team."""
    found = []
    rows = (row for line in comparison.rows for run in line.method.runs for row in run.metrics[:1])
    team_of = {module: team for row in rows for module, team in row.module_teams.items()}
    for i, module in enumerate(modules([row.method for row in comparison.rows])):
        panels = []
        for j, (metric, (title, meaning)) in enumerate(METRICS.items()):
            curves = _curves(comparison, partial(metric_curve, module=module, key=metric))
            if any(curves):
                drawing = _over_steps(curves, looks, ylabel="", from_zero=True, key=f"{key}{i}-{j}")
                caption = meaning + (" Logarithmic axis." if _is_logarithmic(curves) else "")
                panels.append(Panel(title, drawing, _describe(title, comparison.rows, curves), caption))
        of_team = f" of team {team_of[module]}" if module in team_of else ""
        found.append(ModulePanels(f"{module}{of_team}", tuple(panels)))
    return tuple(found)


def _curves(comparison: Comparison, curve: Callable[[EvaluatedRun], Curve]) -> list[list[Curve]]:
    """Per method, the curves of its runs; without those that have no points."""
    curves = ([curve(run) for run in row.method.runs] for row in comparison.rows)
    return [[(x, y) for x, y in own if len(x)] for own in curves]


def _describe(title: str, rows: Sequence[MethodRow], curves: Sequence[Sequence[Curve]]) -> str:
    ends = []
    for row, runs in zip(rows, curves, strict=True):
        _, y = mean_of(runs)
        if len(y):
            ends.append(f"{row.method.label} goes from {written(y[0])} to {written(y[-1])}")
    return f"{title} over environment steps: {'; '.join(ends) or 'no values'}."


def return_curve(run: EvaluatedRun, *, team: str | None = None) -> Curve:
    """Training return of a run: of all agents together, or of one team."""

    def value(row: Iteration) -> float | None:
        return row.return_mean if team is None else (row.team_returns or {}).get(team)

    return _curve(run, value)


def metric_curve(run: EvaluatedRun, *, module: str, key: str) -> Curve:
    """A metric of one module; seconds as a share of the iteration's wall time."""
    ends = [row.seconds for row in run.metrics]  # cumulative
    took = {
        row.iteration: end - before if end > before else math.nan
        for row, before, end in zip(run.metrics, [0.0, *ends], ends, strict=False)
    }

    def value(row: Iteration) -> float | None:
        found = row.modules.get(module, {}).get(key)
        return found if found is None or key != SECONDS else found * (1.0 / took[row.iteration])

    return _curve(run, value)


def _curve(run: EvaluatedRun, value: Callable[[Iteration], float | None]) -> Curve:
    points = [(row.env_steps, found) for row in run.metrics if (found := value(row)) is not None]
    x = np.array([steps for steps, _ in points], dtype=np.float64)
    y = np.array([y if math.isfinite(y) else math.nan for _, y in points], dtype=np.float64)
    return x, y


def teams(methods: Sequence[Method]) -> tuple[str, ...]:
    """Teams that any run scores, in order of appearance."""
    rows = (row for method in methods for run in method.runs for row in run.metrics)
    return tuple(dict.fromkeys(team for row in rows for team in row.team_returns or {}))


def modules(methods: Sequence[Method]) -> tuple[str, ...]:
    """Modules that any run logs a plotted metric for, in order of appearance."""
    rows = (row for method in methods for run in method.runs for row in run.metrics)
    names = (name for row in rows for name, found in row.modules.items() if METRICS.keys() & found.keys())
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


def _over_steps(
    curves: Sequence[Sequence[Curve]], looks: Sequence[Look], *, ylabel: str, from_zero: bool, key: str
) -> Markup:
    """Curves of each method's runs over environment steps: every run thin, their mean thick.

    The value axis is logarithmic where all values are positive and span a factor of 300; else it starts
    at zero, if that is asked for and no value is negative.
    """

    def draw(axes: Axes) -> None:
        for runs, look in zip(curves, looks, strict=True):
            if runs:
                mean = thinned(mean_of(runs))
                marker = look.marker if len(mean[0]) == 1 else ""
                draw_lines(axes, look, [thinned(curve) for curve in runs], mean, marker=marker)
        axes.set(xlabel="environment steps", ylabel=ylabel)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if _is_logarithmic(curves):
            axes.set_yscale("log")
            return
        axes.yaxis.set_major_locator(MaxNLocator(5))
        values = _finite_values(curves)
        if from_zero and values.size and values.min() >= 0:
            axes.set_ylim(0, 1.08 * values.max() or 1.0)

    return svg(draw, key=key)


def _is_logarithmic(curves: Sequence[Sequence[Curve]]) -> bool:
    """Whether a value axis is better logarithmic: all positive, over a factor of 300."""
    values = _finite_values(curves)
    return bool(values.size and values.min() > 0 and values.max() > _LOG_RATIO * values.min())


def _finite_values(curves: Sequence[Sequence[Curve]]) -> Array:
    return np.concatenate([np.empty(0), *(y[np.isfinite(y)] for runs in curves for _, y in runs)])
