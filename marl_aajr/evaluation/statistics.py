"""Statistics of returns, over the episodes of one run and over training runs, by `scipy.stats`.

Over episodes: a paired difference, and the bootstrap interval of a mean. They say nothing of other training
runs.

Over training runs: what few, skewed returns allow to be said. A score is one number of one run (its clean
return, or its return under the worst attack), and runs are what is resampled: episodes of one run say nothing
of another seed. Definitions of Agarwal 2021 (arXiv 2108.13264) and of its library rliable, with explicit
generators. Scores of several tasks must be in common units (normalised) before they are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
_RESAMPLES = 9999

Tasks = Sequence[ArrayLike]
"""Scores of one method: for each task, one score per run."""


class Interval(NamedTuple):
    """A statistic and its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean difference over the same episodes.

    Attributes:
        difference: its mean.
        low: lower end of its 95 % interval; None for a single episode.
        high: upper end.
    """

    difference: float
    low: float | None
    high: float | None

    @property
    def negative(self) -> bool:
        """Whether the interval lies wholly below 0; False where there is none."""
        return self.high is not None and self.high < 0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a − b over the same episodes, with Student's interval."""
    differences = np.subtract(a, b)
    return Difference(float(differences.mean()), *student_interval(differences, level=LEVEL))


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

    It says nothing of other training runs. Source: Efron 1979, by `scipy.stats.bootstrap`.

    Args:
        returns: one for each episode.
        seed: of the resampling.

    Returns:
        The ends of the 95 % interval; None for a single episode, which has none.
    """
    if len(returns) < 2:
        return None, None
    interval = stats.bootstrap(
        (np.array(returns),),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def interquartile_mean(tasks: Tasks) -> float:
    """Mean of the middle half of all scores: outliers do not move it, and it wastes less than the median.

    The lowest ⌊n/4⌋ and the highest ⌊n/4⌋ of the n pooled scores are dropped.
    """
    return float(stats.trim_mean(_pooled(tasks), 0.25))


def optimality_gap(tasks: Tasks, *, target: float) -> float:
    """How far the scores fall short of a target: mean of max(target − score, 0). Smaller is better."""
    return float(np.maximum(target - _pooled(tasks), 0.0).mean())


def probability_of_improvement(ours: Tasks, theirs: Tasks) -> float:
    """P(a run of ours scores higher than one of theirs), ties counting half; the mean over tasks.

    Per task the Mann-Whitney U over the number of pairs: the share of pairs that ours wins.

    Raises:
        ValueError: different numbers of tasks.
    """
    pairs = zip(_tasks(ours), _tasks(theirs), strict=True)
    signs = [np.sign(x[:, None] - y[None, :]).mean() for x, y in pairs]
    return float((1.0 + np.mean(signs)) / 2.0)


def performance_profile(tasks: Tasks, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Share of scores above each threshold τ, `[T]`: the run-score distribution, P(score > τ)."""
    tau = np.asarray(thresholds, dtype=np.float64)
    return np.asarray(np.mean(_pooled(tasks)[None, :] > tau[:, None], axis=1))


def stratified_bootstrap(
    statistic: Callable[..., float],
    *methods: Tasks,
    generator: np.random.Generator,
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
) -> Interval:
    """A statistic with its percentile bootstrap interval over runs, resampled within each task.

    Resampling within tasks (and methods) keeps the number of runs of each. With few runs the interval is too
    narrow: of nominal 95 % it covers about 74 % for 3 runs and 89 % for 10 (see `report.estimates`).

    Args:
        statistic: of one or more methods, such as `interquartile_mean` or
            `probability_of_improvement`.
        methods: scores, as many as `statistic` takes.
        generator: draws the resamples.
        level: coverage.
        resamples: how many.

    Raises:
        ValueError: a task with fewer than two runs.

    Example:
        >>> stratified_bootstrap(interquartile_mean, [[3.0, 4.0, 9.0]], generator=np.random.default_rng(0))
    """
    split = [_tasks(method) for method in methods]
    samples = [runs for method in split for runs in method]
    if min(len(runs) for runs in samples) < 2:
        raise ValueError("expected at least two runs in each task, got one; train another seed")
    ends = np.cumsum([len(method) for method in split])[:-1]

    def of(*resampled: NDArray[np.float64]) -> float:
        bounds = [0, *ends, len(resampled)]
        return statistic(*(resampled[a:b] for a, b in pairwise(bounds)))

    interval = stats.bootstrap(
        samples,
        of,
        n_resamples=resamples,
        vectorized=False,
        paired=False,
        confidence_level=level,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return Interval(of(*samples), float(interval.low), float(interval.high))


def area_under_curve(epsilons: ArrayLike, returns: ArrayLike) -> float:
    """Mean return over ε from 0 to the largest, by trapezoids: (1/ε_max) ∫ R(ε) dε.

    Args:
        epsilons: rising, from 0 (the clean return), `[n]`, n ≥ 2.
        returns: at those, `[n]`.

    Raises:
        ValueError: fewer than two points, or epsilons that do not rise from 0.
    """
    x, y = np.asarray(epsilons, np.float64), np.asarray(returns, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"expected two or more epsilons and as many returns, got {x.shape} and {y.shape}")
    if x[0] != 0 or (np.diff(x) <= 0).any():
        raise ValueError(f"expected epsilons that rise from 0, got {x.tolist()}; put the clean return first")
    return float(np.trapezoid(y, x) / x[-1])


def pareto_front(points: ArrayLike) -> list[int]:
    """Indices of the points that no other beats, by their first coordinate; both are to be large.

    A point is beaten where another is at least as good in both and better in one. Equal points stay.

    Args:
        points: (clean return, robust return) of each method, `[n, 2]`.
    """
    p = np.asarray(points, np.float64).reshape(-1, 2)
    no_worse = (p[:, None, :] >= p[None, :, :]).all(-1)
    better = (p[:, None, :] > p[None, :, :]).any(-1)
    beaten = (no_worse & better).any(0)
    return sorted(np.flatnonzero(~beaten).tolist(), key=lambda i: (p[i, 0], i))


def hypervolume(points: ArrayLike, *, reference: tuple[float, float]) -> float:
    """Area that the points dominate above a reference point fixed beforehand, in return².

    Args:
        points: (clean return, robust return) of each method, `[n, 2]`.
        reference: (clean, robust) that every method should reach, such as a random policy's; points below it
            in either coordinate count for nothing.
    """
    p = np.asarray(points, np.float64).reshape(-1, 2) - np.asarray(reference, np.float64)
    p = p[(p > 0).all(-1)]
    area, left = 0.0, 0.0
    for i in pareto_front(p):
        clean, robust = p[i]
        area += (clean - left) * robust
        left = clean
    return float(area)


def _tasks(tasks: Tasks) -> list[NDArray[np.float64]]:
    found = [np.asarray(runs, dtype=np.float64).ravel() for runs in tasks]
    if not found or any(len(runs) == 0 for runs in found):
        raise ValueError("expected scores for each task, got none; give one score per run")
    if not all(np.isfinite(runs).all() for runs in found):
        raise ValueError("expected finite scores, got others; leave out what was not measured")
    return found


def _pooled(tasks: Tasks) -> NDArray[np.float64]:
    return np.concatenate(_tasks(tasks))
