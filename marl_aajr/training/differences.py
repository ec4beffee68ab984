"""In which settings two configurations differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marl_aajr.training.config import RunConfig


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """``key: old → new`` for every setting that differs, nested keys joined with dots."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    absent = object()
    return [
        f"{key}: {before.get(key, 'not set')!r} → {after.get(key, 'not set')!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, absent) != after.get(key, absent)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
