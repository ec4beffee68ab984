"""Draw one small panel per figure as inline SVG that takes its fonts and colours from the page.

Small panels, because the page sets them side by side on a desk and one below the other on a
phone, where a wide figure would shrink until nobody could read it. Text stays text
(``svg.fonttype: none``): it is sharp, can be found and copied, and follows the page's font and
dark colours. Nothing that a user named is written into a figure: names stand in captions, which
the template escapes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from marl_aajr.report.comparison import Row
from marl_aajr.report.curves import Array, Curve, mean_of
from marl_aajr.report.palette import GRID, INK, MUTED, Look, dark_variables
from marl_aajr.report.protocol import Condition

_SIZE = (3.6, 2.5)
_SWATCH = (0.6, 0.2)
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.solid_capstyle": "round",
}
_LOG_RATIO = 300.0


def robustness_panel(
    rows: Sequence[Row],
    looks: Sequence[Look],
    conditions: Sequence[Condition],
    *,
    limits: tuple[float, float],
    key: str,
) -> Markup:
    """Return against ε under one attack, ε = 0 being the clean return; intervals shaded.

    Args:
        rows: the methods.
        looks: one per method.
        conditions: the sizes of this attack, rising.
        limits: of the return axis, the same for all attacks so that they can be compared.
        key: unique in the page.
    """
    x = [0.0, *(condition.epsilon for condition in conditions)]

    def draw(axes: Axes) -> None:
        for row, look in zip(rows, looks, strict=True):
            _draw_row(axes, row, look, conditions, x)
        axes.set(xlabel="ε (0 = no attack)", ylabel="return", ylim=limits)
        axes.set_xticks(_spaced(x), [f"{value:g}" for value in _spaced(x)])

    return _svg(draw, key=key)


def _draw_row(axes: Axes, row: Row, look: Look, conditions: Sequence[Condition], x: Sequence[float]) -> None:
    points = [row.clean, *(row.robust[condition] for condition in conditions)]
    low = [point.mean if point.low is None else point.low for point in points]
    high = [point.mean if point.high is None else point.high for point in points]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
    if len(row.runs) > 1:
        for run in row.runs:
            y = [run.clean.mean, *(run.attacked[condition].mean for condition in conditions)]
            axes.plot(x, y, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
    means = [point.mean for point in points]
    (line,) = axes.plot(x, means, color=look.colour, ls=look.dashes, linewidth=1.7, zorder=3)
    line.set(marker=look.marker, markersize=4.5)


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
                for x, y in runs:
                    axes.plot(x, y, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
            x, y = mean_of(runs)
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

    return _svg(draw, key=key)


def swatch(look: Look, *, key: str) -> tuple[Markup, Markup]:
    """The line of a method, for legends.

    Returns:
        Its definition, which the page holds once, and a drawing of it, to be used anywhere.
    """

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], color=look.colour, linestyle=look.dashes, linewidth=2.0)
        axes.plot([1], [0], color=look.colour, marker=look.marker, markersize=6)
        axes.set(xlim=(-0.1, 2.1), ylim=(-1, 1))

    drawing = str(_svg(draw, key=key, size=_SWATCH))
    end = drawing.index(">") + 1
    box = drawing[drawing.index("viewBox=") : end].split('"')[1]
    inner = drawing[end:].replace("</svg>", "")
    definition = f'<symbol id="{key}" viewBox="{box}">{inner}</symbol>'
    use = f'<svg class="swatch" viewBox="{box}" aria-hidden="true"><use href="#{key}"/></svg>'
    return Markup(definition), Markup(use)


def is_logarithmic(curves: Sequence[Sequence[Curve]]) -> bool:
    """Whether a value axis is better logarithmic: all positive, over a factor of 300."""
    values = _values(curves)
    return bool(values.size and values.min() > 0 and values.max() > _LOG_RATIO * values.min())


def return_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Range of the return axis that holds every mean, run and interval, with some air."""
    ends = [
        end
        for row in rows
        for point in (row.clean, *row.robust.values())
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


def _svg(draw: Callable[[Axes], None], *, key: str, size: tuple[float, float] = _SIZE) -> Markup:
    """Run matplotlib without its global state and make the SVG fit to stand in a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(_for_page(buffer.getvalue(), key=key))


def _for_page(svg: str, *, key: str) -> str:
    """Strip what only a file needs, make ids unique in the page, hand colours to the style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', svg, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{key}-", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for hexadecimal, variable in _variables().items():
        svg = svg.replace(hexadecimal, variable)
    return svg


def _variables() -> dict[str, str]:
    fixed = {INK: "ink", MUTED: "muted", GRID: "rule"}
    palette = {colour: f"m{i}" for i, colour in enumerate(dark_variables())}
    return {colour: f"var(--{name})" for colour, name in {**fixed, **palette}.items()}
