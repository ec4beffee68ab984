"""Turn a matplotlib drawing into inline SVG that takes its fonts and colours from the page.

Text stays text (`svg.fonttype: none`): it is sharp, can be found and copied, and follows the page's font
and dark colours. Nothing that a user named is written into a figure: names stand in captions, which the
template escapes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marl_aajr.report.palette import GRID, INK, MUTED, Look, dark_variables

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


def svg(draw: Callable[[Axes], None], *, key: str, size: tuple[float, float] = _SIZE) -> Markup:
    """Run matplotlib without its global state and make the SVG fit to stand in a page.

    Args:
        draw: draws on the axes that it is given.
        key: unique in the page.
        size: in inches.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(_for_page(buffer.getvalue(), key=key))


def _for_page(drawn: str, *, key: str) -> str:
    """Strip what only a file needs, make ids unique in the page, hand colours to the style sheet."""
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', drawn, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\1{key}-", drawn)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    for hexadecimal, variable in _variables().items():
        drawn = drawn.replace(hexadecimal, variable)
    return drawn


def _variables() -> dict[str, str]:
    fixed = {INK: "ink", MUTED: "muted", GRID: "rule"}
    palette = {colour: f"m{i}" for i, colour in enumerate(dark_variables())}
    return {colour: f"var(--{name})" for colour, name in {**fixed, **palette}.items()}


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

    drawing = str(svg(draw, key=key, size=_SWATCH))
    end = drawing.index(">") + 1
    box = drawing[drawing.index("viewBox=") : end].split('"')[1]
    inner = drawing[end:].replace("</svg>", "")
    definition = f'<symbol id="{key}" viewBox="{box}">{inner}</symbol>'
    use = f'<svg class="swatch" viewBox="{box}" aria-hidden="true"><use href="#{key}"/></svg>'
    return Markup(definition), Markup(use)
