"""Checks of options, with messages that name the option."""

from __future__ import annotations


def whole(name: str, value: object, *, least: int = 1) -> None:
    """Raises `ValueError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be an integer of at least {least}, got {value!r}")


def proportion(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"expected {name} between 0 and 1, got {value!r}")
