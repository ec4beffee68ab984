"""Means with intervals, over runs where there are several and over episodes where there is one.

Methods are compared by the interval of their difference: that two intervals overlap says nothing, least of
all where both sides played the same episodes.

Between runs the interval is Student's t, not the bootstrap: for few runs the bootstrap is far
too narrow. In 4000 simulated experiments with normal runs, the nominal 95 % t-interval covered
the truth in 95 % of the cases at every number of runs; the percentile bootstrap in 51 % for 2
runs, 74 % for 3, 83 % for 5 and 89 % for 10 (skewed runs: t 89 to 91 %, bootstrap 46 to 85 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Unit = Literal["runs", "episodes"]


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that it is known to.

    Attributes:
        mean: in units of return.
        low: lower end of the interval; None where none can be given.
        high: upper end; None together with `low`.
        values: what the mean is over, one for each run or episode; empty for other statistics.
        unit: what the interval generalises to.
        level: coverage of the interval.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    unit: Unit
    level: float

    @property
    def positive(self) -> bool:
        """Whether the interval lies wholly above 0; False where there is none."""
        return self.low is not None and self.low > 0

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two means, with the interval that their units allow.

        Between methods with several runs it is over runs; between single runs over pairs of episodes, because
        both played the same seeds. Between one run and several there is none.
        """
        if self.unit != other.unit:
            return Estimate(self.mean - other.mean, None, None, (), "runs", self.level)
        between = difference_over_runs if self.unit == "runs" else difference_over_episodes
        return between(self.values, other.values, level=self.level)


def over_runs(values: Sequence[float], *, level: float) -> Estimate:
    """Mean of one value per run, with Student's t-interval: mean ± t·s/√n, n − 1 degrees.

    Args:
        values: one mean return per run, [n], n ≥ 2.
        level: coverage, such as 0.95.
    """
    return _student(values, "runs", level=level)


def over_episodes(values: Sequence[float], *, level: float) -> Estimate:
    """Mean of one value per episode of one run, with Student's t-interval; a single episode has none."""
    return _student(values, "episodes", level=level)


def difference_over_runs(left: Sequence[float], right: Sequence[float], *, level: float) -> Estimate:
    """Mean of left − mean of right, with Welch's t-interval (the variances may differ).

    Args:
        left: one mean return per run, at least two.
        right: the same of the other method.
        level: coverage.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    mean = float(a.mean() - b.mean())
    if va + vb == 0.0:
        return Estimate(mean, mean, mean, (), "runs", level)
    degrees = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = _half_width(math.sqrt(va + vb), degrees=degrees, level=level)
    return Estimate(mean, mean - half, mean + half, (), "runs", level)


def difference_over_episodes(left: Sequence[float], right: Sequence[float], *, level: float) -> Estimate:
    """Mean of left − right episode by episode, with Student's t-interval over the pairs.

    Both sides played the same episode seeds, so pairing removes what the episodes share.

    Args:
        left: one return per episode, [n].
        right: the same episodes under the other run, [n].
        level: coverage.
    """
    return over_episodes(np.subtract(left, right).tolist(), level=level)


def _student(values: Sequence[float], unit: Unit, *, level: float) -> Estimate:
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, None, None, tuple(values), unit, level)
    half = _half_width(x.std(ddof=1) / math.sqrt(len(x)), degrees=len(x) - 1, level=level)
    return Estimate(mean, mean - half, mean + half, tuple(values), unit, level)


def _half_width(standard_error: float, *, degrees: float, level: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, degrees) * standard_error)
