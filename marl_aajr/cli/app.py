"""The command line's front door: the commands, the global options, and what happens to errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from marl_aajr.cli import adversary, compare, evaluate, listing, study, train
from marl_aajr.cli.errors import report
from marl_aajr.cli.options import guide
from marl_aajr.version import __version__

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
app.command("list", help=listing.HELP)(listing.show)


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
