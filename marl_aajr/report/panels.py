"""The figures of the page with their captions and a description for those who cannot see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from marl_aajr.report import figures
from marl_aajr.report.comparison import Comparison, Row
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
from marl_aajr.report.palette import Look
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


def robustness(comparison: Comparison, looks: Sequence[Look], *, decimals: int) -> tuple[Panel, ...]:
    """One panel per attack: return against ε."""
    limits = figures.return_limits(comparison.rows)
    panels = []
    for i, attack in enumerate(comparison.attacks):
        conditions = [c for c in comparison.conditions if c.attack == attack]
        svg = figures.robustness_panel(comparison.rows, looks, conditions, limits=limits, key=f"eps{i}")
        described = "; ".join(
            f"{row.method.label} {number(row.clean.mean, decimals=decimals)} without attack, "
            + ", ".join(
                f"{number(row.robust[c].mean, decimals=decimals)} at {c.epsilon:g}" for c in conditions
            )
            for row in comparison.rows
        )
        panels.append(Panel(attack, svg, f"Return against ε under {attack}. {described}."))
    return tuple(panels)


def learning(comparison: Comparison, looks: Sequence[Look]) -> tuple[Panel, ...]:
    """Training return over environment steps: one panel, or one per team where there are several."""
    methods = [row.method for row in comparison.rows]
    found = teams(methods)
    sides: tuple[str | None, ...] = found if len(found) > 1 else (None,)
    panels = []
    for i, side in enumerate(sides):
        curves = [_nonempty([returns(run, team=side) for run in m.runs]) for m in methods]
        title = "Training return" if side is None else f"Training return: {side}"
        svg = figures.learning_panel(curves, looks, ylabel="return", from_zero=False, key=f"learn{i}")
        panels.append(Panel(title, svg, _describe(title, comparison.rows, curves)))
    return tuple(panels)


def logging(comparison: Comparison) -> tuple[Row, ...]:
    """Rows whose runs log metrics of a regulariser."""
    return tuple(row for row in comparison.rows if modules([row.method]))


def training_metrics(comparison: Comparison, looks: Sequence[Look]) -> tuple[Group, ...]:
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
                panels.append(_metric_panel(metric, comparison.rows, curves, looks, key=f"m{i}-{j}"))
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
