"""`marl-aajr list`: what `--env`, `--method` and `--attack` can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from marl_aajr.cli.options import guide

HELP = guide(
    "List the environments, methods or attacks that can be named, one line each.",
    "marl-aajr list methods",
    "marl-aajr list envs --json",
)


def show(
    kind: Annotated[str, typer.Argument(metavar="envs|methods|attacks", help="What to list.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects with name and summary, on stdout.")
    ] = False,
) -> None:
    """List one kind of thing."""
    if kind not in _KINDS:
        raise ValueError(f"expected one of {', '.join(_KINDS)}; got {kind!r}")
    entries = _KINDS[kind]()
    if as_json:
        print(
            json.dumps(
                [{"name": name, "summary": text} for name, text in entries], ensure_ascii=False, indent=1
            )
        )
        return
    width = max(len(name) for name, _ in entries)
    for name, text in entries:
        print(f"{name:<{width}}  {text}".rstrip())


def _environments() -> list[tuple[str, str]]:
    from marl_aajr.rollout.environments import known_environments

    return [(spec.name, spec.summary) for spec in known_environments()]


def _methods() -> list[tuple[str, str]]:
    from marl_aajr.training.method import METHODS, NO_METHOD

    plain = (NO_METHOD, "plain PPO: nothing added")
    return [plain, *((name, cls.summary) for name, cls in METHODS.items())]


def _attacks() -> list[tuple[str, str]]:
    from marl_aajr.attacks import ATTACKS

    return [(name, cls.summary) for name, cls in ATTACKS.items()]


_KINDS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "envs": _environments,
    "methods": _methods,
    "attacks": _attacks,
}
