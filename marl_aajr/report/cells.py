"""The parts that tables are made of, as text: the template only lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from marl_aajr.report.statistics import Estimate
from marl_aajr.report.wording import interval, number

_RowT = TypeVar("_RowT")


@dataclass(frozen=True)
class Cell:
    """One value.

    Attributes:
        main: the number.
        under: a smaller second line.
        note: a smaller third line.
        mark: `best`, `tied` (not distinguishable from the best), `worst` or nothing.
        shade: 0 (lowest return) to `SHADES` − 1 (highest) in a heat map; None: not shaded.
    """

    main: str
    under: str = ""
    note: str = ""
    mark: str = ""
    shade: int | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    header: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """Rows under a common heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table without numbers to compare: a line per thing, the first column names it."""

    caption: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


NOTHING = Cell("—")
"""Where a method has no value."""

SHADES = 9


def size(epsilon: float) -> str:
    """`ε = 0.1`."""
    return f"ε = {epsilon:g}"


def estimated(estimate: Estimate, *, decimals: int, note: str = "", mark: str = "") -> Cell:
    """A mean over its interval."""
    return Cell(
        number(estimate.mean, decimals=decimals), interval(estimate, decimals=decimals), note, mark=mark
    )


def marked(
    header: str,
    rows: Sequence[_RowT],
    value: Callable[[_RowT], Estimate | None],
    *,
    decimals: int,
    note: Callable[[_RowT], str] = lambda row: "",
) -> Line:
    """A line whose best mean is marked, and what cannot be distinguished from it."""
    values = [value(row) for row in rows]
    known = [estimate for estimate in values if estimate is not None]
    best = max(known, key=lambda estimate: estimate.mean, default=None)

    def cell(row: _RowT, estimate: Estimate | None) -> Cell:
        if estimate is None or best is None:
            return NOTHING
        mark = "best" if estimate is best else "" if best.minus(estimate).positive else "tied"
        return estimated(estimate, decimals=decimals, note=note(row), mark=mark if len(known) > 1 else "")

    return Line(header, tuple(cell(row, estimate) for row, estimate in zip(rows, values, strict=True)))
