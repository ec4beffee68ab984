"""Regularizers by name. `none` is plain training and therefore not one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from marl_aajr.core.checks import check_settings, made, one_of
from marl_aajr.regularizers.aajr import AAJR
from marl_aajr.regularizers.augmentation import NoiseAugmentation, OffPolicyAdversarialTraining
from marl_aajr.regularizers.certified import ConvexSmoothPolicy, Radial
from marl_aajr.regularizers.finetuning import embedding_penalty
from marl_aajr.regularizers.jacobian_norms import Frobenius, RandomDirection, Spectral
from marl_aajr.regularizers.macer import MACER
from marl_aajr.regularizers.regularizer import Regularizer, Sum
from marl_aajr.regularizers.sample import Context, LossTerm, Sample, State, ppo_policy_loss
from marl_aajr.regularizers.smoothness import ERNIE, SmoothPolicy
from marl_aajr.regularizers.spectral_normalization import SpectralNormalization

__all__ = [
    "AAJR",
    "ERNIE",
    "MACER",
    "REGULARIZERS",
    "Context",
    "ConvexSmoothPolicy",
    "Frobenius",
    "LossTerm",
    "NoiseAugmentation",
    "OffPolicyAdversarialTraining",
    "Radial",
    "RandomDirection",
    "Regularizer",
    "Sample",
    "SmoothPolicy",
    "Spectral",
    "SpectralNormalization",
    "State",
    "Sum",
    "embedding_penalty",
    "make_regularizer",
    "ppo_policy_loss",
    "settings_of",
]

REGULARIZERS: dict[str, type[Regularizer]] = {
    cls.name: cls
    for cls in (
        AAJR,
        RandomDirection,
        Frobenius,
        Spectral,
        SpectralNormalization,
        SmoothPolicy,
        ConvexSmoothPolicy,
        ERNIE,
        Radial,
        MACER,
        OffPolicyAdversarialTraining,
        NoiseAugmentation,
        Sum,
    )
}
"""The regularizers by name."""


def make_regularizer(name: str, **settings: Any) -> Regularizer:
    """A regularizer by name and settings, as YAML files give them.

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.

    Example:
        >>> make_regularizer("sum", members=[{"name": "aajr"}, {"name": "smooth_policy", "coefficient": 0.1}])
    """
    one_of("regularizer", name, REGULARIZERS)
    cls = REGULARIZERS[name]
    check_settings(name, cls, settings)
    if cls is Sum:
        members = settings["members"]
        given = members if isinstance(members, list | tuple) else [members]
        if unnamed := [m for m in given if isinstance(m, Mapping) and "name" not in m]:
            raise ValueError(f"expected a name in every member of a sum, got {dict(unnamed[0])}")
        made_of = (make_regularizer(**m) if isinstance(m, Mapping) else m for m in given)
        return Sum(members=tuple(made_of))
    return made(cls, settings)


def settings_of(regularizer: Regularizer) -> dict[str, Any]:
    """Name and settings, defaults written out; `make_regularizer` makes the same one of them."""
    if isinstance(regularizer, Sum):
        return {"name": Sum.name, "members": [settings_of(member) for member in regularizer.members]}
    fields = dataclasses.fields(regularizer)  # type: ignore[arg-type]
    return {"name": regularizer.name, **{field.name: getattr(regularizer, field.name) for field in fields}}
