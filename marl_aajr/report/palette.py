"""One look per method, the same in every figure of the page.

Okabe and Ito's colours, which colour-blind readers can tell apart; the method without a
regulariser is always the neutral grey. Marker and dashes differ too, for print in black and
white, and carry on where the colours are used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marl_aajr.report.methods import Method

INK = "#1b1f24"
MUTED = "#5b636d"
GRID = "#dfe3e8"
PAPER = "#ffffff"

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


@dataclass(frozen=True)
class Look:
    """How a method is drawn.

    Attributes:
        colour: on a light page.
        dark: on a dark page.
        marker: matplotlib marker.
        dashes: matplotlib line style.
    """

    colour: str
    dark: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


def looks(methods: Sequence[Method]) -> tuple[Look, ...]:
    """One look per method, in their order; different from one another for up to 24 methods."""
    found: list[Look] = []
    coloured = 0
    for method in methods:
        if method.plain and not any(look.colour == _PLAIN[0] for look in found):
            found.append(Look(*_PLAIN, marker="X", dashes="-"))
            continue
        turn, place = divmod(coloured, len(_COLOURS))
        found.append(
            Look(
                *_COLOURS[place],
                marker=_MARKERS[(place + turn) % len(_MARKERS)],
                dashes=_DASHES[turn % len(_DASHES)],
            )
        )
        coloured += 1
    return tuple(found)


def dark_variables() -> dict[str, str]:
    """Light colour -> its counterpart on a dark page, for all colours of the palette."""
    return dict((_PLAIN, *_COLOURS))
