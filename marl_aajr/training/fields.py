"""The parts that all configurations share: sections, number types, error messages, and differences.

YAML files and command lines hand over `1e6` for an integer and `"5e-4"` for a float; both are meant
well. `true` for a number is not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from marl_aajr.core.checks import Schedule as _Schedule
from marl_aajr.core.checks import as_schedule
from marl_aajr.core.environment_values import agent_names

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a configuration: only known keys, and no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    def changed(self, **values: Any) -> Self:
        """The same with other values, checked: `ValueError` with one line per problem."""
        return validated(type(self), {**dict(self), **values})

    def to_yaml(self) -> str:
        """This as YAML, defaults written out; it reads back exactly."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _number(value: Any, kind: str = "a number") -> Any:
    try:
        if not isinstance(value, bool):
            return float(value) if isinstance(value, str) else value
    except ValueError:
        pass
    raise ValueError(f"expected {kind}")


def _integer(value: Any) -> Any:
    value = _number(value, "an integer")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("expected an integer")
    return value


def _automatic(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        value = _integer(value)
    except ValueError:
        value = None
    if not isinstance(value, int | float) or value < 1:
        raise ValueError("expected auto or an integer ≥ 1")
    return int(value)


def _schedule(value: Any) -> Any:
    """A number or breakpoints, without the name: the error line has it already."""
    try:
        return as_schedule(_number(value) if isinstance(value, str) else value, name="this setting")
    except ValueError as error:
        text = str(error).removesuffix(f", got {value!r}").replace(" for this setting", "")
        raise ValueError(text) from None


def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list."""
    if not values:
        raise ValueError("expected at least one, got none; add one, or leave the key out")
    return values


def once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a repeated value."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"expected each once, got {value!r} twice; remove one")
    return values


def _agents(value: Any) -> Any:
    return agent_names(value) if isinstance(value, Sequence) else value


AgentNames = Annotated[tuple[str, ...], BeforeValidator(_agents)]
"""Names of agents; agents that are numbers, tuples or enums are given as they are, or by their names."""

Count = Annotated[int, BeforeValidator(_integer), Field(ge=1)]
AutoCount = Annotated[int | Literal["auto"], BeforeValidator(_automatic)]
Whole = Annotated[int, BeforeValidator(_integer), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Schedule = Annotated[_Schedule, BeforeValidator(_schedule)]
"""A number ≥ 0, or breakpoints `[[env_step, value], ...]`."""


def validated(
    model: type[Model],
    data: Mapping[str, Any],
    *,
    where: Callable[[tuple[str | int, ...]], str] | None = None,
) -> Model:
    """A configuration from nested mappings, as a YAML file or a command line gives them.

    Raises:
        ValueError: one line per problem: `where` its key stands, the field, what would be right, what came.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines: dict[tuple[str | int, ...], str] = {}
        for problem in error.errors():
            # Pydantic names the alternatives of a union behind the place; what the first one wants will do.
            key = tuple(takewhile(lambda part: not _ALTERNATIVE.fullmatch(str(part)), problem["loc"]))
            line = _line(model, problem, ".".join(map(str, key)))
            lines.setdefault(key, line if where is None else f"{where(key)}: {line}")
        raise ValueError("\n".join(lines.values())) from None


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; what stands in its way and is no mapping is replaced."""
    *sections, last = key.split(".")
    for name in sections:
        inner = data.get(name)
        data[name] = dict(inner) if isinstance(inner, Mapping) else {}
        data = data[name]
    data[last] = value


_ALTERNATIVE = re.compile(r"str|int|float|bool|.*\[.*\]")
_EXPECTED = {
    "model_type": "expected a mapping of keys to values",
    "dict_type": "expected a mapping of keys to values",
    "tuple_type": "expected a list",
    "invalid_key": "expected a name as the key",
}
"""By type of error, where Pydantic's message is about Python."""


def _line(model: type[BaseModel], error: ErrorDetails, field: str) -> str:
    where, field = [str(part) for part in error["loc"]], field or "configuration"
    if error["type"] == "extra_forbidden":
        for name in where[:-1]:
            if name in model.model_fields:  # or else a place in a list of the model found last
                model = next(_models(model.model_fields[name].annotation), model)
        hint = _near(where[-1], list(model.model_fields))
        return f"{field}: unknown key; {hint and hint + ' '}known: {', '.join(model.model_fields)}"
    if error["type"] == "missing":
        return f"{field}: missing; add it"
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if message.startswith("Input should be"):
        what = message.removeprefix("Input should be").strip()
        message = f"expected {'a number ' if what.startswith(('greater', 'less')) else ''}{what}"
    if re.search("[,;] got ", message) or isinstance(error["input"], BaseModel | Mapping):
        return f"{field}: {message}"
    hint = ""
    if error["type"] == "literal_error":
        hint = _near(error["input"], re.findall("'(.*?)'", error["ctx"]["expected"]))
    return f"{field}: {message}, got {error['input']!r}{hint and '; ' + hint}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, which may be optional or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _near(given: Any, known: list[str]) -> str:
    """The question whether a near name was meant; empty where none is near."""
    close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f"did you mean {close[0]}?" if close else ""


def check_untouched(section: BaseModel, names: Iterable[str], *, of: str, beside: str) -> None:
    """Raise `ValueError` where one of these settings, which say nothing here, is not at its default."""
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(f"expected {of}.{name} {default} with {beside}, got {value}; change one of them")


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """`key: old → new` for every setting that differs, nested keys joined with dots."""
    before, after = (flat(each.model_dump(mode="json"), ".") for each in (old, new))
    absent = object()
    return [
        f"{key}: {before.get(key, 'not set')!r} → {after.get(key, 'not set')!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, absent) != after.get(key, absent)
    ]


def flat(data: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined; an empty one is a value."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            result[f"{prefix}{key}"] = value
    return result
