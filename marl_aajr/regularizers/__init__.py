"""Regularizers by name. ``none`` is plain training and therefore not one of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from marl_aajr.checks import one_of
from marl_aajr.regularizers.aajr import AAJR
from marl_aajr.regularizers.base import Evaluation, Regularizer, Sample, ppo_policy_loss

__all__ = [
    "AAJR",
    "REGULARIZERS",
    "Evaluation",
    "Regularizer",
    "Sample",
    "make_regularizer",
    "ppo_policy_loss",
]

REGULARIZERS: dict[str, type[Regularizer]] = {cls.name: cls for cls in (AAJR,)}
"""The regularizers by name."""


def make_regularizer(name: str, **settings: Any) -> Regularizer:
    """A regularizer by name and settings, as YAML files give them.

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.
    """
    one_of("regularizer", name, REGULARIZERS)
    cls = REGULARIZERS[name]
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"expected settings of {name!r} out of {', '.join(known)}; got {', '.join(unknown)}")
    return cls(**settings)
