"""Numbers and lists as a reader expects them: true minus signs, sensible digits, 'a, b and c'."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from marl_aajr.report.statistics import Estimate

_MAX_DECIMALS = 4
_FEW = 3


def decimals_for(estimates: Iterable[Estimate]) -> int:
    """Decimals that show two digits of a typical interval, the same for the whole page."""
    widths = [
        estimate.high - estimate.low
        for estimate in estimates
        if estimate.low is not None and estimate.high is not None and estimate.high > estimate.low
    ]
    if not widths:
        return 1
    magnitude = math.floor(math.log10(statistics.median(widths)))
    return min(max(1 - magnitude, 0), _MAX_DECIMALS)


def number(value: float, *, decimals: int) -> str:
    """Fixed decimals and a true minus sign, never −0."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:,.{decimals}f}".replace("-", "−").replace(",", "\u202f")


def interval(estimate: Estimate, *, decimals: int) -> str:
    """`[low, high]`, or a dash where no interval can be given."""
    if estimate.low is None or estimate.high is None:
        return "[no interval]"
    low, high = (number(x, decimals=decimals) for x in (estimate.low, estimate.high))
    return f"[{low},\u00a0{high}]"


def with_interval(estimate: Estimate, *, decimals: int) -> str:
    """Mean and interval in one phrase."""
    return f"{number(estimate.mean, decimals=decimals)}\u00a0{interval(estimate, decimals=decimals)}"


def listing(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; with semicolons where an item has a comma in it."""
    if len(items) < 2:
        return "".join(items)
    between = "; " if any("," in item for item in items) else ", "
    return f"{between.join(items[:-1])} and {items[-1]}"


def some(items: Sequence[str], *, of: int, noun: str) -> str:
    """The items while they are few, else how many of how many."""
    return listing(items) if len(items) <= _FEW else f"{len(items)} of the {of} {noun}"


def epsilons(values: Sequence[float]) -> str:
    """`ε = 0.1 and 0.2`."""
    return f"ε\u00a0=\u00a0{listing([f'{value:g}' for value in values])}"


def count(n: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
