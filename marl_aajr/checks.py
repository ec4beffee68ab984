"""Messages for bad input, worded the same everywhere: what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``known`` names."""
    known = list(known)
    if value not in known:
        raise ValueError(f"expected {name} out of {', '.join(known)}; got {value!r}")


def at_least_one(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected an integer {name} ≥ 1, got {value!r}")
