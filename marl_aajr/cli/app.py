"""The program: its commands, the global options, the command `list`, and what happens to errors.

An error is one line and its cure, not a traceback. A traceback is still at hand: `--debug` shows it, and an
error that is our fault leaves it in a file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from marl_aajr import __version__
from marl_aajr.cli import adversary, certify, compare, evaluate, study, train
from marl_aajr.cli.options import guide, plain, takes
from marl_aajr.core.settings import every_setting

MISUSE = 2
"""Exit code of everything a person can put right."""

BUG = 1
"""Exit code of everything else."""

_EXPECTED = ("EnvironmentFault", "NonFiniteError", "ProcessesLostError")
"""By name: importing these classes would import torch and the environments to report a misspelt option."""

_FILES = {"run": "marl_aajr.training.config.RunConfig", "study": "marl_aajr.study.study_config.StudyConfig"}
"""What describes the keys of a file, by the kind of file."""

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
        "Train robust multi-agent policies on Ray RLlib, attack what they observe, and compare them.",
        "marl-aajr train --env marl_aajr.envs.simple_spread_v3 --method none",
        "marl-aajr train --env marl_aajr.envs.simple_spread_v3 --method aajr",
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
app.command("certify", help=certify.HELP)(certify.certify)
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
    sys.path.append(os.getcwd())  # where a person's own modules are; Ray tells its workers
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = app(
            [word for word in given if word != "--debug"], prog_name="marl-aajr", standalone_mode=False
        )
    except Exception as error:
        code = report(error, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


def report(error: Exception, *, debug: bool) -> int:
    """Print an error to stderr and return the exit code that belongs to it."""
    cause = getattr(error, "cause", None)
    if type(error).__module__.startswith("ray.") and isinstance(cause, Exception):
        error = cause  # raised in another process
    if debug:
        traceback.print_exception(error)
    lines = _expected(error)
    if lines is not None:
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        return MISUSE
    where = ""
    if not debug:
        handle, path = tempfile.mkstemp(prefix="marl-aajr-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
        where = f"; traceback in {path} (or run it again with --debug)"
    summary = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"error: unexpected {summary[:300]}{where}", file=sys.stderr)
    return BUG


def _expected(error: Exception) -> list[str] | None:
    """The lines to print for an error that a person can put right; None for any other."""
    if isinstance(error, typer.TyperException):
        message = error.format_message()  # empty where nothing was asked, and the help is printed
        return [f"{message} (-h lists what there is)"] if message else []
    if isinstance(error, OSError):
        return [f"{error.strerror}: {error.filename}"] if error.filename else None
    if isinstance(error, ValueError) or type(error).__name__ in _EXPECTED:
        return str(error).splitlines() or [type(error).__name__]
    return None


@app.command("list", help=LIST)
@takes()
def list_names(kind: str, *, json_: bool = False) -> None:
    """List one kind of thing.

    Args:
        kind (envs|methods|attacks|run|study|NAME): What to list.
        json_: A list of objects with name and summary, on stdout.
    """
    entries = _entries(kind)
    if json_:
        found = [{"name": name, "summary": text} for name, text in entries]
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    width = max(len(name) for name, _ in entries)
    for name, text in entries:
        print(f"{name:<{width}}  {text}".rstrip())


def _entries(kind: str) -> list[tuple[str, str]]:
    """What there is of a kind, or the settings of one thing: name and summary."""
    if kind in _FILES:
        return _settings(_FILES[kind])
    if kind == "envs":
        from marl_aajr.rollout.environments import known_environments

        return [(spec.name, spec.summary) for spec in known_environments()]
    from marl_aajr.attacks import ATTACKS
    from marl_aajr.training.method import METHODS, NO_METHOD, PER_TEAM

    if kind == "attacks":
        return [(name, cls.summary) for name, cls in ATTACKS.items()]
    if kind == "methods":
        nothing = (NO_METHOD, "plain PPO: nothing added")
        mixed = (PER_TEAM, "a method for each team: teams: {adversary: aajr, good: smooth_policy}")
        return [nothing, *((name, cls.summary) for name, cls in METHODS.items()), mixed]
    classes: dict[str, type] = {**ATTACKS, **METHODS}
    if kind not in classes:
        raise ValueError(
            "expected one of envs, methods, attacks, run, study, or a name of list methods or list attacks; "
            f"got {kind!r}"
        )
    return _settings(f"{classes[kind].__module__}.{classes[kind].__qualname__}")


def _settings(cls: str) -> list[tuple[str, str]]:
    """The settings of a class, with choices, default and range."""
    return [
        (path, plain(setting.summary) + (f" [{plain(setting.facts)}]" if setting.facts else ""))
        for path, setting in every_setting(cls)
    ]
