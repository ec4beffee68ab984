"""Checks that word their messages alike, settings that change over training (schedules), decimals, groups.

A schedule is written as in RLlib: a number, or breakpoints `[[timestep, value], ...]` with straight lines
between them and the last value held. Non-finite numbers stop with the name of their origin; nothing is
silently zeroed. The decimals of returns follow from their scale: two digits of an interval, else three of a
return. This file does not import torch: the command line reads it first.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from math import floor, inf, isfinite, log10
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    from torch import Tensor

METRIC_DECIMALS = 3
"""Of what environments report beside rewards, such as success."""

_Made = TypeVar("_Made")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise `ValueError` unless `value` is one of the `known` names; the nearest one is proposed."""
    known = list(known)
    if value not in known:
        close = get_close_matches(value, known, n=1) if isinstance(value, str) else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"expected {name} out of {', '.join(known)}; got {value!r}{hint}")


def whole(name: str, value: object, *, least: int = 1) -> None:
    """Raise `ValueError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected an integer {name} ≥ {least}, got {value!r}")


def positive(name: str, value: object, *, note: str = "", zero: bool = False) -> None:
    """Raise `ValueError` unless `value` is a finite number above 0, or, with `zero`, 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < inf or (zero and value == 0)):  # type: ignore[operator]
        raise ValueError(f"expected a finite {name} {'≥' if zero else '>'} 0{note}, got {value!r}")


def proportion(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"expected {name} in [0, 1], got {value!r}")


def check_settings(name: str, cls: type, given: Collection[str]) -> None:
    """Raise `ValueError` unless the settings of a dataclass are known, and those without default given."""
    fields = dataclasses.fields(cls)
    known = [field.name for field in fields]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"expected settings of {name!r} out of {', '.join(known)}; got {', '.join(unknown)}")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [setting for setting in required if setting not in given]:
        raise ValueError(f"expected the settings {', '.join(missing)} of {name!r}, got none; give them")


def made(cls: type[_Made], settings: Mapping[str, Any]) -> _Made:
    """A dataclass made of settings as files give them, which have the types that it declares.

    Raises:
        ValueError: a setting of another type, or what the class itself raises.
    """
    others = [key for key, value in settings.items() if not _fits(cls, key, value)]
    try:
        result = cls(**settings)
    except (TypeError, OverflowError):
        if not others:
            raise
    if others:
        types = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        words = types[others[0]].replace("tuple[", "list[").replace(", ...]", "]").replace(" | ", " or ")
        raise ValueError(f"expected {others[0]} as {words}, got {settings[others[0]]!r}")
    return result


def _fits(cls: type, key: str, value: Any) -> bool:
    """Whether a setting has its type, as far as JSON and pydantic know both."""
    from pydantic import ValidationError

    try:
        if (adapter := _adapters(cls).get(key)) is not None:
            adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    except TypeError:  # no JSON: given in Python
        return True
    return True


@cache
def _adapters(cls: type) -> dict[str, Any]:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter  # late: help needs none

    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        with suppress(PydanticSchemaGenerationError):
            found[field.name] = TypeAdapter(hints[field.name])
    return found


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity, with where it arose."""


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise `NonFiniteError` where `tensor` holds a NaN or an infinity.

    Args:
        name: what the tensor is, as the message should call it.
        tensor: any shape; reading the answer waits for the accelerator.
    """
    # A NaN or an infinity leaves no sum finite, and one sum is quicker than a look at each number.
    if not isfinite(tensor.sum().item()) and not bool(tensor.isfinite().all()):
        nans, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise NonFiniteError(f"{name}: {nans} NaN and {infinite} infinite of {tensor.numel()} numbers")


def nonfinite(total: Tensor) -> Tensor:
    """1 where a scalar is NaN or infinite, else 0: ∞ − ∞ and NaN − NaN are NaN."""
    return (total - total != 0).long()


def is_search_space(value: object) -> bool:
    """Whether Ray Tune puts a value in the place of this one: `grid_search`, `choice`, `uniform`, ..."""
    grid = isinstance(value, Mapping) and set(value) == {"grid_search"}
    return grid or type(value).__module__.startswith("ray.tune.")


def refuse_search_spaces(maker: str, settings: Mapping[str, object]) -> None:
    """Raise `ValueError` where a setting of a regularizer is a search space, and say where that belongs."""
    for name, value in settings.items():
        if is_search_space(value):
            raise ValueError(
                f"expected a value for {name}, got the search space {value!r}, which Tune fills in around a "
                "regularizer and not inside it; give robustify a space of regularizers: "
                f"tune.grid_search([{maker}({name}=x) for x in ...])"
            )


Schedule = float | tuple[tuple[float, float], ...]


def as_schedule(value: float | Sequence[Sequence[float]], *, name: str) -> Schedule:
    """A validated schedule.

    Args:
        value: a number, or breakpoints `[[timestep, value], ...]` that start at timestep 0.
        name: what it schedules, for the error message.

    Raises:
        ValueError: not a number or such a list, or a negative or non-finite value.
    """
    constant = isinstance(value, int | float)
    pairs: Any = [(0.0, value)] if constant else value
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | Sequence):
            raise TypeError
        points = tuple((float(t), float(v)) for t, v in pairs)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected a number or [[timestep, value], ...] for {name}, got {value!r}") from None
    times = [time for time, _ in points]
    if times[:1] != [0] or sorted(set(times)) != times:
        raise ValueError(f"expected increasing timesteps from 0 in the schedule of {name}, got {times}")
    if not all(isfinite(v) and v >= 0 for _, v in points):
        raise ValueError(f"expected finite values ≥ 0 for {name}, got {value!r}")
    return points[0][1] if constant else points


def as_values(settings: object, *, schedules: Collection[str], tuples: Collection[str]) -> None:
    """Write schedules, validated, and lists as tuples into a frozen dataclass: a file gives it lists."""
    for name in schedules:
        object.__setattr__(settings, name, as_schedule(getattr(settings, name), name=name))
    for name in tuples:
        if isinstance(value := getattr(settings, name), list):
            object.__setattr__(settings, name, tuple(value))


def value_at(schedule: Schedule, timestep: float) -> float:
    """The schedule's value at an environment step."""
    if isinstance(schedule, float):
        return schedule
    after = bisect_right(schedule, timestep, key=lambda point: point[0])
    if after == len(schedule):
        return schedule[-1][1]
    (t0, v0), (t1, v1) = schedule[after - 1], schedule[after]
    return v0 + (v1 - v0) * (timestep - t0) / (t1 - t0)


def raised(value: Schedule, start: float, end: float) -> Schedule:
    """A number as a schedule that rises to it from 0 between two environment steps; schedules as they are."""
    if not isinstance(value, float) or value == 0:
        return value
    foot = ((0.0, 0.0),) if start == 0 else ((0.0, 0.0), (start, 0.0))
    return (*foot, (end, value))


def maximum(schedule: Schedule) -> float:
    """The schedule's largest value."""
    return schedule if isinstance(schedule, float) else max(v for _, v in schedule)


def minimum(schedule: Schedule) -> float:
    """The schedule's smallest value."""
    return schedule if isinstance(schedule, float) else min(v for _, v in schedule)


def grouped(pairs: Iterable[tuple[_Key, _Value]]) -> dict[_Key, list[_Value]]:
    """The values of each key, keys and values in the order of the pairs."""
    found: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


_MOST_DIGITS = 6
_MOST_DECIMALS = 6


class Mean(Protocol):
    """A mean with the interval that it is known to, if there is one."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def decimals_of(values: Iterable[float], *, widths: Iterable[float] = ()) -> int:
    """Decimals for all of some numbers: two digits of a typical width, else three of a typical number.

    Of a typical number at most six digits are shown, whatever the widths.
    """
    sizes = [abs(value) for value in values if value and isfinite(value)]
    typical = floor(log10(median(sizes))) if sizes else 1
    reaches = [width for width in widths if width > 0 and isfinite(width)]
    wanted = 1 - floor(log10(median(reaches))) if reaches else 2 - typical
    return max(min(wanted, _MOST_DIGITS - 1 - typical), 0)


def decimals_for(means: Iterable[Mean]) -> int:
    """Decimals for some means and their intervals, the same for a whole table or page."""
    found = list(means)
    widths = [each.high - each.low for each in found if each.low is not None and each.high is not None]
    return decimals_of([each.mean for each in found], widths=widths)


def written(value: float, decimals: int | None = None) -> str:
    """A number in fixed decimals, those of its own size if none are given, and never −0.

    What is too small for them is written as a power of ten: `1.23e-09`.
    """
    decimals = decimals_of([value]) if decimals is None else decimals
    return f"{value:.2e}" if decimals > _MOST_DECIMALS else f"{round(value, decimals) + 0.0:,.{decimals}f}"
