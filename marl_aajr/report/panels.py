"""The figures of the page with their captions and a description for those who cannot see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from marl_aajr.report import figures
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.conditions import Condition, unlimited
from marl_aajr.report.curves import (
    METRICS,
    Curve,
    Metric,
    mean_of,
    module_metric,
    modules,
    returns,
    teams,
)
from marl_aajr.report.figures import Series
from marl_aajr.report.palette import Look
from marl_aajr.report.protocol import Results
from marl_aajr.report.statistics import Estimate
from marl_aajr.report.wording import number


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: what is shown.
        svg: the drawing.
        alt: what the drawing shows, in words and numbers.
        caption: what a reader needs besides the title; may be empty.
    """

    title: str
    svg: Markup
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Group:
    """The panels of one module."""

    module: str
    panels: tuple[Panel, ...]


def worst_case(comparison: Comparison, looks: Sequence[Look], *, decimals: int, key: str) -> Panel:
    """The picture of the whole comparison: return under the worst attack of each size."""
    limits = figures.return_limits(comparison.rows)
    series = [_series(row, comparison.epsilons, row.strongest, Results.worst) for row in comparison.rows]
    svg = figures.epsilon_panel(series, looks, limits=limits, key=key)
    alt = f"Return under the worst attack against ε. {_spelled(comparison, series, decimals=decimals)}."
    return Panel("Return under the worst attack", svg, alt)


def robustness(
    comparison: Comparison, looks: Sequence[Look], *, decimals: int, key: str
) -> tuple[Panel, ...]:
    """One panel per attack on everybody at every step: return against ε."""
    limits = figures.return_limits(comparison.rows)
    conditions = unlimited(comparison.conditions)
    panels = []
    for i, attack in enumerate(dict.fromkeys(condition.attack for condition in conditions)):
        at = {c.epsilon: c for c in conditions if c.attack == attack}
        series = [
            _series(row, tuple(at), {e: row.robust[c] for e, c in at.items()}, partial(_fixed, at))
            for row in comparison.rows
        ]
        svg = figures.epsilon_panel(series, looks, limits=limits, key=f"{key}{i}")
        described = _spelled(comparison, series, decimals=decimals)
        panels.append(Panel(attack, svg, f"Return against ε under {attack}. {described}."))
    return tuple(panels)


def _fixed(at: Mapping[float, Condition], _: Results, epsilon: float) -> Condition:
    """The same attack for every run."""
    return at[epsilon]


def _series(
    row: Row,
    epsilons: tuple[float, ...],
    estimates: Mapping[float, Estimate],
    condition: Callable[[Results, float], Condition],
) -> Series:
    return Series(
        (0.0, *epsilons),
        (row.clean, *(estimates[e] for e in epsilons)),
        tuple(
            (run.clean.mean, *(run.attacked[condition(run, e)].mean for e in epsilons)) for run in row.runs
        ),
    )


def _spelled(comparison: Comparison, series: Sequence[Series], *, decimals: int) -> str:
    """Every point in words."""
    return "; ".join(
        f"{row.method.label} {number(one.points[0].mean, decimals=decimals)} without attack, "
        + ", ".join(
            f"{number(point.mean, decimals=decimals)} at {epsilon:g}"
            for epsilon, point in zip(one.epsilons[1:], one.points[1:], strict=True)
        )
        for row, one in zip(comparison.rows, series, strict=True)
    )


def learning(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Panel, ...]:
    """Training return over environment steps: one panel, or one per team where there are several."""
    methods = [row.method for row in comparison.rows]
    found = teams(methods)
    sides: tuple[str | None, ...] = found if len(found) > 1 else (None,)
    panels = []
    for i, side in enumerate(sides):
        curves = [_nonempty([returns(run, team=side) for run in m.runs]) for m in methods]
        title = "Training return" if side is None else f"Training return: {side}"
        svg = figures.learning_panel(curves, looks, ylabel="return", from_zero=False, key=f"{key}{i}")
        panels.append(Panel(title, svg, _describe(title, comparison.rows, curves)))
    return tuple(panels)


def logging(comparison: Comparison) -> tuple[Row, ...]:
    """Rows whose runs log metrics of a regulariser."""
    return tuple(row for row in comparison.rows if modules([row.method]))


def training_metrics(comparison: Comparison, looks: Sequence[Look], *, key: str) -> tuple[Group, ...]:
    """The regulariser's metrics: per module, one panel per metric that any method logs."""
    methods = [row.method for row in comparison.rows]
    groups = []
    for i, module in enumerate(modules(methods)):
        panels = []
        for j, metric in enumerate(METRICS):
            curves = [
                _nonempty([module_metric(run, module=module, key=metric.key) for run in m.runs])
                for m in methods
            ]
            if any(curves):
                panels.append(_metric_panel(metric, comparison.rows, curves, looks, key=f"{key}{i}-{j}"))
        groups.append(Group(module, tuple(panels)))
    return tuple(groups)


def _metric_panel(
    metric: Metric,
    rows: Sequence[Row],
    curves: Sequence[Sequence[Curve]],
    looks: Sequence[Look],
    *,
    key: str,
) -> Panel:
    scale = " Logarithmic axis." if figures.is_logarithmic(curves) else ""
    return Panel(
        metric.title,
        figures.learning_panel(curves, looks, ylabel="", from_zero=True, key=key),
        _describe(metric.title, rows, curves),
        metric.meaning + scale,
    )


def _nonempty(curves: Sequence[Curve]) -> list[Curve]:
    return [(x, y) for x, y in curves if len(x)]


def _describe(title: str, rows: Sequence[Row], curves: Sequence[Sequence[Curve]]) -> str:
    ends = []
    for row, runs in zip(rows, curves, strict=True):
        _, y = mean_of(runs)
        if len(y):
            ends.append(f"{row.method.label} goes from {y[0]:.3g} to {y[-1]:.3g}")
    return f"{title} over environment steps: {'; '.join(ends) or 'no values'}."
