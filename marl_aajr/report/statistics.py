"""Means with intervals, over runs where there are several and over episodes where there is one.

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
        high: upper end; None together with ``low``.
        count: how many values of ``unit`` the mean is over.
        unit: what the interval generalises to.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    unit: Unit

    def above(self, other: Estimate) -> bool:
        """Whether this interval lies wholly above the other one; False where one is unknown."""
        return self.low is not None and other.high is not None and self.low > other.high


def over_runs(values: Sequence[float], *, level: float) -> Estimate:
    """Mean of one value per run, with Student's t-interval: mean ± t·s/√n, n − 1 degrees.

    Args:
        values: one mean return per run, [n], n ≥ 2.
        level: coverage, such as 0.95.
    """
    x = np.asarray(values, dtype=np.float64)
    half = _half_width(x.std(ddof=1) / math.sqrt(len(x)), degrees=len(x) - 1, level=level)
    mean = float(x.mean())
    return Estimate(mean, mean - half, mean + half, len(x), "runs")


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
        return Estimate(mean, mean, mean, min(len(a), len(b)), "runs")
    degrees = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = _half_width(math.sqrt(va + vb), degrees=degrees, level=level)
    return Estimate(mean, mean - half, mean + half, min(len(a), len(b)), "runs")


def difference_over_episodes(
    left: Sequence[float],
    right: Sequence[float],
    *,
    level: float,
    generator: np.random.Generator,
) -> Estimate:
    """Mean of left − right episode by episode, with a percentile bootstrap over episodes.

    Both sides played the same episode seeds, so pairing removes what the episodes share.

    Args:
        left: one return per episode, [n].
        right: the same episodes under the other run, [n].
        level: coverage.
        generator: draws the resamples; the same state gives the same interval.
    """
    x = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, None, None, len(x), "episodes")
    interval = stats.bootstrap(
        (x,), np.mean, confidence_level=level, method="percentile", rng=generator
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(x), "episodes")


def _half_width(standard_error: float, *, degrees: float, level: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, degrees) * standard_error)
