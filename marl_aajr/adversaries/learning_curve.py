"""The learning curve of an adversary, and whether it was still rising when the training ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

POINTS = 100
"""The number of points that a curve may have."""

_LAST = 0.25
"""The part of the curve that is asked whether it rises."""

_LEAST = 5
"""Points in it below which nothing can be said."""

Curve = Sequence[tuple[int, float]]
"""Environment steps, those of the search included, and the adversary's return in training."""


class Rise(NamedTuple):
    """The gain over the last quarter of a training, by the regression line, with a 99 % interval."""

    mean: float
    low: float
    high: float

    def goes_on(self, *, lost: float) -> bool:
        """Whether it is beyond doubt, and 5 % or more of the return that the adversary costs its victims."""
        return self.low > 0 and self.mean > 0.05 * lost


def learning_curve(records: Iterable[Mapping[str, Any]], *, before: int = 0) -> list[tuple[int, float]]:
    """The curve of a run, from the lines of its `metrics.jsonl`; the means of stretches of a longer one.

    Args:
        records: its lines.
        before: environment steps of the search before it.
    """
    points = [(r["env_steps"] + before, r["return_mean"]) for r in records if r["return_mean"] is not None]
    stretches = np.array_split(
        np.array(points, dtype=np.float64).reshape(-1, 2), min(POINTS, len(points)) or 1
    )
    return [(round(part[-1, 0]), float(part[:, 1].mean())) for part in stretches if len(part)]


def last_rise(curve: Curve) -> Rise | None:
    """The gain over the last quarter; None: there are too few points to tell."""
    last = np.array(curve[-round(_LAST * len(curve)) :], dtype=np.float64).reshape(-1, 2)
    if len(last) < _LEAST or len(curve) < _LEAST / _LAST:
        return None
    steps, returns = last.T
    line, length = stats.linregress(steps, returns), steps[-1] - steps[0]
    reach = stats.t.ppf(0.995, len(last) - 2) * line.stderr
    return Rise(*(float(length * slope) for slope in (line.slope, line.slope - reach, line.slope + reach)))
