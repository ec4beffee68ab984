"""How the options of `train` get on its command line, and over a configuration file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from marl_aajr.cli.settings import SETTINGS, Setting, number_or_text
from marl_aajr.cli.teaching import told


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that ends in `**settings` one option per entry of `SETTINGS`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters = [*(_parameter(setting) for setting in SETTINGS), *own]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(setting: Setting) -> inspect.Parameter:
    """One option as typer wants it."""
    option = typer.Option(
        setting.flag,
        metavar=setting.metavar,
        help=told(setting.help, setting.default),
        rich_help_panel=setting.panel,
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(setting.name, kind, default=None, annotation=Annotated[str | None, option])


def override(
    base: Mapping[str, Any], options: Mapping[str, str | None], assignments: Sequence[str]
) -> dict[str, Any]:
    """A configuration as nested mappings, with what the command line says put over a base.

    Args:
        base: from a file; empty where there is none.
        options: value as typed by parameter name; None for what was not given.
        assignments: `key.key=value` as given to `--set`; they win over everything.

    Raises:
        ValueError: an assignment without `=`.
    """
    given = {s.key: s.read(text) for s in SETTINGS if (text := options.get(s.name)) is not None}
    given |= parse_assignments(assignments)
    result = dict(base)
    method = result.get("method")
    if "method.name" in given and isinstance(method, Mapping) and method.get("name") != given["method.name"]:
        result["method"] = {}  # settings of another method mean nothing to this one
    for key, value in given.items():
        _put(result, key.split("."), value)
    return result


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` as given to `--set`, by key.

    Raises:
        ValueError: an assignment without `=`.
    """
    given = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ValueError(f"expected --set KEY=VALUE such as ppo.lr=3e-4, got {assignment!r}")
        given[key] = number_or_text(text)
    return given


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested key; what is on the way and no mapping gives way."""
    *parents, last = path
    for name in parents:
        inner = data.get(name)
        data[name] = dict(inner) if isinstance(inner, Mapping) else {}
        data = data[name]
    data[last] = value
