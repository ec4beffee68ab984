"""The style of the figures: a look for each method, and matplotlib drawings as inline SVG.

Okabe and Ito's colours, which colour-blind readers can tell apart; the method without a regulariser is always
the neutral grey. Marker and dashes differ too, for print in black and white, and carry on where the colours
are used up.

In an SVG text stays text (`svg.fonttype: none`): it is sharp, can be found and copied, and follows the page's
font and dark colours. No name that a user chose is written into a figure: names stand in captions, which the
template escapes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import count
from marl_aajr.report.methods import Method

INK = "#1b1f24"
MUTED = "#5b636d"
GRID = "#dfe3e8"

_PLAIN = ("#5c6670", "#b4bdc7")
_COLOURS = (
    ("#0072b2", "#58b4ee"),
    ("#d55e00", "#ff9147"),
    ("#009e73", "#2ecc9f"),
    ("#b8569a", "#e79fcd"),
    ("#c98a00", "#f2b632"),
    ("#3fa7dd", "#9bd6f7"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.5, 1.2, 1.5)),
)
_Curve = tuple[ArrayLike, ArrayLike]
_SIZE = (3.6, 2.5)
_SWATCH = (0.6, 0.2)
_STYLE = Path(__file__).with_name("report.mplstyle")


class Look(NamedTuple):
    """The colour of a method on a light and on a dark page, its marker and its line style (matplotlib's)."""

    colour: str
    dark: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


def looks(methods: Sequence[Method]) -> tuple[Look, ...]:
    """One look per method, in their order; different from one another for up to 24 methods."""
    found: list[Look] = []
    for method in methods:
        plain = [look for look in found if look.colour == _PLAIN[0]]
        if method.plain and not plain:
            found.append(Look(*_PLAIN, marker="X", dashes="-"))
            continue
        turn, place = divmod(len(found) - len(plain), len(_COLOURS))
        marker = _MARKERS[(place + turn) % len(_MARKERS)]
        found.append(Look(*_COLOURS[place], marker=marker, dashes=_DASHES[turn % len(_DASHES)]))
    return tuple(found)


def dark_colours() -> dict[str, str]:
    """Light colour -> its counterpart on a dark page, for all colours of methods."""
    return dict((_PLAIN, *_COLOURS))


class LegendEntry(NamedTuple):
    """A method in a legend: its label, its line in figures, and the number of its runs, in words."""

    label: str
    line: Markup
    runs: str


@dataclass(frozen=True)
class Legend:
    """By label, the look of every method of a page, and its line as a drawing that may stand anywhere on it.

    The page holds each of `definitions`, those of the drawings, once.
    """

    looks: Mapping[str, Look]
    lines: Mapping[str, Markup]
    definitions: tuple[Markup, ...]

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Legend:
        """The looks of all methods of the page."""
        methods = {row.method.label: row.method for comparison in comparisons for row in comparison.rows}
        found = dict(zip(methods, looks(list(methods.values())), strict=True))
        drawn = {label: swatch(look, key=f"line{i}") for i, (label, look) in enumerate(found.items())}
        lines = {label: use for label, (_, use) in drawn.items()}
        return cls(found, lines, tuple(definition for definition, _ in drawn.values()))

    def of_rows(self, rows: Sequence[MethodRow]) -> list[Look]:
        """The looks of some rows."""
        return [self.looks[row.method.label] for row in rows]

    def entries(self, rows: Sequence[MethodRow]) -> list[LegendEntry]:
        """The methods of some rows."""
        labels = ((row.method.label, len(row.runs)) for row in rows)
        return [LegendEntry(label, self.lines[label], count(runs, "run")) for label, runs in labels]


@dataclass(frozen=True)
class Panel:
    """One figure: a title, a drawing, what that shows in words (`alt`), and a caption, if it needs one."""

    title: str
    svg: Markup
    alt: str
    caption: str = ""


def svg(draw: Callable[[Axes], None], *, key: str, size: tuple[float, float] = _SIZE) -> Markup:
    """Run matplotlib without its global state, for an SVG that fits into a page, where its key is unique."""
    with style.context([_STYLE, {"svg.hashsalt": key}]):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(_for_page(buffer.getvalue(), key=key))


def draw_lines(axes: Axes, look: Look, runs: Sequence[_Curve], mean: _Curve, **marker: Any) -> None:
    """The mean of a method's runs as a thick line, and the runs, where there are several, as thin ones."""
    if len(runs) > 1:
        for x, y in runs:
            axes.plot(x, y, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
    axes.plot(*mean, color=look.colour, ls=look.dashes, linewidth=1.7, zorder=3, **marker)


def _for_page(drawn: str, *, key: str) -> str:
    """Strip what only a file needs, make ids unique in the page, hand colours to the style sheet."""
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, flags=re.DOTALL)
    for side in ("width", "height"):
        drawn = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', drawn, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\1{key}-", drawn)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    fixed = {INK: "ink", MUTED: "muted", GRID: "rule"}
    for colour, name in (fixed | {colour: f"m{i}" for i, colour in enumerate(dark_colours())}).items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn


def swatch(look: Look, *, key: str) -> tuple[Markup, Markup]:
    """The line of a method, for legends: its definition, which the page holds once, and its use anywhere."""

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
