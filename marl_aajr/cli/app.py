"""The program: its commands, the global options, the command `list`, and what happens to errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from marl_aajr import __version__
from marl_aajr.cli import adversary, compare, evaluate, study, train
from marl_aajr.cli.errors import report
from marl_aajr.cli.options import guide, plain
from marl_aajr.core.settings import every_setting

LIST = guide(
    "List what can be named, one line each: environments, methods or attacks; the keys of a run's or a "
    "study's file; or the settings of one method or attack.",
    "marl-aajr list methods",
    "marl-aajr list envs --json",
    "marl-aajr list run",
    "marl-aajr list aajr",
)

app = typer.Typer(
    name="marl-aajr",
    help=guide(
        "Train teams of agents that hold up when somebody lies to their sensors, attack them, compare them.",
        "marl-aajr train --env simple_spread_v3 --method none",
        "marl-aajr train --env simple_spread_v3 --method aajr",
        "marl-aajr evaluate runs/simple_spread_v3-none-s0",
        "marl-aajr evaluate runs/simple_spread_v3-aajr-s0",
        "marl-aajr compare runs/simple_spread_v3-* --out report.html",
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", help=train.HELP)(train.train)
app.command("evaluate", help=evaluate.HELP)(evaluate.evaluate)
app.add_typer(adversary.app, name="adversary")
app.command("compare", help=compare.HELP)(compare.compare)
app.command("study", help=study.HELP)(study.study)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"marl-aajr {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        arguments: what follows the program's name; None: `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = app(
            [word for word in given if word != "--debug"], prog_name="marl-aajr", standalone_mode=False
        )
    except Exception as error:
        code = report(error, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


@app.command("list", help=LIST)
def list_names(
    kind: Annotated[str, typer.Argument(metavar="envs|methods|attacks|run|study|NAME", help="What to list.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects with name and summary, on stdout.")
    ] = False,
) -> None:
    """List one kind of thing."""
    entries = _LISTS[kind]() if kind in _LISTS else _settings(_class_of(kind))
    if as_json:
        found = [{"name": name, "summary": text} for name, text in entries]
        print(json.dumps(found, ensure_ascii=False, indent=1))
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


def _settings(cls: str) -> list[tuple[str, str]]:
    """The settings of a class, with choices, default and range."""
    return [
        (path, plain(setting.summary) + (f" [{plain(setting.facts)}]" if setting.facts else ""))
        for path, setting in every_setting(cls)
    ]


def _class_of(name: str) -> str:
    """The dotted name of a method's or attack's class."""
    from marl_aajr.attacks import ATTACKS
    from marl_aajr.training.method import METHODS

    classes: dict[str, type] = {**ATTACKS, **METHODS}
    if name not in classes:
        raise ValueError(
            f"expected one of {', '.join(_LISTS)}, or a name of list methods or list attacks; got {name!r}"
        )
    return f"{classes[name].__module__}.{classes[name].__qualname__}"


_LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "envs": _environments,
    "methods": _methods,
    "attacks": _attacks,
    "run": lambda: _settings("marl_aajr.training.config.RunConfig"),
    "study": lambda: _settings("marl_aajr.study.config.StudyConfig"),
}
