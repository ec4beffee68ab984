"""Messages for bad input, worded the same everywhere: what was expected, what came."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from difflib import get_close_matches


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise `ValueError` unless `value` is one of the `known` names; the nearest one is proposed."""
    known = list(known)
    if value not in known:
        close = get_close_matches(value, known, n=1) if isinstance(value, str) else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"expected {name} out of {', '.join(known)}; got {value!r}{hint}")


def at_least_one(name: str, value: object) -> None:
    """Raise `ValueError` unless `value` is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected an integer {name} ≥ 1, got {value!r}")


def check_settings(name: str, cls: type, given: Collection[str]) -> None:
    """Raise `ValueError` unless the settings of a dataclass are known, and those without default given."""
    fields = dataclasses.fields(cls)
    known = [field.name for field in fields]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"expected settings of {name!r} out of {', '.join(known)}; got {', '.join(unknown)}")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [setting for setting in required if setting not in given]:
        raise ValueError(f"expected the settings {', '.join(missing)} of {name!r}, got none; give them")
