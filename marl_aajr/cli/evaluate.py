"""``marl-aajr evaluate``: play a trained team with and without attacks on its observations."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marl_aajr.cli.teaching import guide, told

if TYPE_CHECKING:
    from rich.table import Table

ATTACKS = ("noise", "fgsm", "pgd")
"""Attacks where none is named: they need no settings and fit every policy."""

EPSILONS = (0.05, 0.1, 0.2)
"""Sizes of the attacks where none is named: around the ε that methods train against by default."""

HELP = guide(
    "Play a finished run's team without and with attacks on what it observes. The result is kept in "
    "RUN/evaluations, where compare finds it. Attacked episodes use the seeds of the clean ones.",
    "marl-aajr evaluate runs/study-3",
    "marl-aajr evaluate runs/study-3 --attack pgd --epsilon 0.1 --epsilon 0.2",
    "marl-aajr evaluate runs/study-3 --episodes 400 --json > result.json",
)


def evaluate(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    episodes: Annotated[
        int, typer.Option(metavar="INT", help="Episodes without attack, and for each attack and size.")
    ] = 100,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FLOAT",
            help=told(
                "Size of the attacks, in the units that the network sees; may be repeated.",
                " ".join(f"{size:g}" for size in EPSILONS),
            ),
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=told("A name of [b]list attacks[/b]; may be repeated.", " ".join(ATTACKS))
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the episodes and of the attacks.")] = 0,
    team: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=told("Side that is attacked, and whose return is reported.", "the only one, or the largest"),
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one object: clean_return, and attacks, a list of attack, epsilon, return, low, high.",
        ),
    ] = False,
) -> None:
    """Evaluate one run and print what came out."""
    from rich.console import Console

    # Whatever a library prints must not get between the braces.
    with contextlib.redirect_stdout(sys.stderr):
        result = _evaluate(
            run, attack or ATTACKS, epsilon or EPSILONS, episodes=episodes, seed=seed, team=team
        )
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    console.print(f"Team {result['team']}, {result['episodes']} episodes, greedy actions", markup=False)
    console.print(table(result))
    name = shlex.quote(str(run))
    console.print(f"On a page: marl-aajr compare {name}", soft_wrap=True, highlight=False, markup=False)


def table(result: Mapping[str, Any]) -> Table:
    """One evaluation as ``--json`` prints it, as rows.

    Args:
        result: one file of RUN/evaluations.
    """
    from rich.table import Table

    shown = Table()
    shown.add_column("attack")
    for heading in ("ε", "return", f"{result['interval']['level']:.0%} interval", "actions changed"):
        shown.add_column(heading, justify="right")
    shown.add_row("none", "", *_numbers(result["clean"]), "")
    for attack in result["attacks"]:
        changed = attack.get("success_rate")
        share = "" if changed is None else f"{changed:.0%}"
        shown.add_row(attack["attack"], f"{attack['epsilon']:g}", *_numbers(attack), share)
    return shown


def _numbers(outcome: Mapping[str, Any]) -> tuple[str, str]:
    low, high = outcome["low"], outcome["high"]
    return f"{outcome['return']:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}"


def _evaluate(
    run: Path, attacks: Sequence[str], epsilons: Sequence[float], **protocol: Any
) -> dict[str, Any]:
    """The evaluation as its file has it, with a bar while it plays."""
    from rich.console import Console

    from marl_aajr.cli.progress import PlayingProgress, waiting

    console = Console(stderr=True)
    with waiting("Loading torch", console=console):
        from marl_aajr.evaluation import evaluate_run
    with PlayingProgress(console) as progress:
        evaluation = evaluate_run(run, attacks=attacks, epsilons=epsilons, on_progress=progress, **protocol)
    return evaluation.to_json()
