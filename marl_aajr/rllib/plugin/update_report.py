"""The metrics of a regularizer over the minibatches of an update, and over several learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """The metrics of one update by name (see `reduced`), and the origin of the first that was not finite."""

    metrics: Mapping[str, float]
    origin: str | None = None

    @classmethod
    def of_all(cls, reports: Sequence[Report]) -> Report:
        """Of several learners: means, extremes and counts over all of them."""
        metrics = {
            name: float(reduced(name, torch.tensor([report.metrics[name] for report in reports])))
            for name in reports[0].metrics
        }
        return cls(metrics, next((report.origin for report in reports if report.origin), None))


def reduced(name: str, values: Tensor) -> Tensor:
    """One number of several by the rule of their name, `[N] -> []`."""
    if name.endswith("nonfinite"):
        return values.sum()
    if name.endswith("_max"):
        return values.amax()
    return values.amin() if name.endswith("_min") else values.mean()
