"""Intervals of a mean over episodes or runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
_RESAMPLES = 9999


def student_interval(values: ArrayLike, *, level: float) -> tuple[float, float] | tuple[None, None]:
    """Student's interval of a mean; None for a single value, the mean itself where all are equal."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return None, None
    mean, error = float(x.mean()), float(stats.sem(x))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(level, len(x) - 1, loc=mean, scale=error)
    return float(low), float(high)


def bootstrap_interval(returns: Sequence[float], *, seed: int) -> tuple[float | None, float | None]:
    """Percentile bootstrap of the mean over episodes: what other seeds of the same victim would give.

    It says nothing of other training runs. Source: Efron 1979, by `scipy.stats.bootstrap`; the seed is that
    of the resampling. The ends of the 95 % interval; None for a single episode, which has none.
    """
    if len(returns) < 2:
        return None, None
    return percentile_interval([returns], np.mean, resamples=_RESAMPLES, seed=seed)


def percentile_interval(
    samples: Sequence[ArrayLike], statistic: Callable[..., Any], *, resamples: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a statistic of some samples, each resampled by itself.

    A statistic that takes an `axis` is asked once, of all resamples.
    """
    interval = stats.bootstrap(
        [np.asarray(sample) for sample in samples],
        statistic,
        confidence_level=LEVEL,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
