"""The decimals of returns, which follow from their scale: two digits of an interval, else three of a return.

This file does not import torch: the command line reads it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, isfinite, log10
from statistics import median
from typing import Protocol

_MOST_DIGITS = 6
_MOST_DECIMALS = 6


class Mean(Protocol):
    """A mean with the interval that it is known to, if there is one."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def decimals_of(values: Iterable[float], *, widths: Iterable[float] = ()) -> int:
    """Decimals for all of some numbers: two digits of a typical width, else three of a typical number.

    Of a typical number at most six digits are shown, whatever the widths.
    """
    sizes = [abs(value) for value in values if value and isfinite(value)]
    typical = floor(log10(median(sizes))) if sizes else 1
    reaches = [width for width in widths if width > 0 and isfinite(width)]
    wanted = 1 - floor(log10(median(reaches))) if reaches else 2 - typical
    return max(min(wanted, _MOST_DIGITS - 1 - typical), 0)


def decimals_for(means: Iterable[Mean]) -> int:
    """Decimals for some means and their intervals, the same for a whole table or page."""
    found = list(means)
    widths = [each.high - each.low for each in found if each.low is not None and each.high is not None]
    return decimals_of([each.mean for each in found], widths=widths)


def written(value: float, decimals: int | None = None) -> str:
    """A number in fixed decimals, those of its own size if none are given, and never −0.

    What is too small for them is written as a power of ten: `1.23e-09`.
    """
    decimals = decimals_of([value]) if decimals is None else decimals
    return f"{value:.2e}" if decimals > _MOST_DECIMALS else f"{round(value, decimals) + 0.0:,.{decimals}f}"
