"""Every attack against every method, shaded by the return that it leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.conditions import Condition
from marl_aajr.report.estimates import SHADES, Block, Cell, Estimate, Line, estimated, size


def heat_map(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """One block per size, rows by attack: return of each method, its worst attacks marked.

    Attacks that are limited to some agents or steps stand in blocks of their own.
    """
    rows = comparison.rows
    means = [e.mean for row in rows for e in (row.clean, *row.robust.values())]
    ends = min(means), max(means)

    def line(header: str, condition: Condition | None) -> Line:
        return Line(header, tuple(_cell(row, condition, ends, decimals=decimals) for row in rows))

    blocks = [Block("No attack", (line("none", None),))]
    by_block: dict[tuple[str, float], list[Condition]] = defaultdict(list)
    for condition in comparison.conditions:
        by_block[condition.limits, condition.epsilon].append(condition)
    for (limits, epsilon), conditions in sorted(
        by_block.items(), key=lambda item: (item[0][0] != "", item[0])
    ):
        title = size(epsilon) + (f", {limits}" if limits else "")
        lines = [line(_without(condition.attack, limits), condition) for condition in conditions]
        blocks.append(Block(title, tuple(lines)))
    return tuple(blocks)


def _cell(row: Row, condition: Condition | None, ends: tuple[float, float], *, decimals: int) -> Cell:
    estimate: Estimate = row.clean if condition is None else row.robust[condition]
    low, high = ends
    share = (estimate.mean - low) / (high - low) if high > low else 1.0
    worst = condition is not None and row.worst.get(condition.epsilon) == condition
    cell = estimated(estimate, decimals=decimals, mark="worst" if worst else "")
    return replace(cell, shade=min(int(share * SHADES), SHADES - 1))


def _without(label: str, limits: str) -> str:
    return label.removesuffix(f", {limits}") if limits else label


def lowest_and_highest(blocks: Sequence[Block]) -> tuple[str, str]:
    """The returns at the two ends of the shading, as shown."""
    cells = [cell for block in blocks for line in block.lines for cell in line.cells]
    ordered = sorted(cells, key=lambda cell: (cell.shade or 0, _value(cell)))
    return ordered[0].main, ordered[-1].main


def _value(cell: Cell) -> float:
    return float(cell.main.replace("−", "-").replace("\u202f", ""))
