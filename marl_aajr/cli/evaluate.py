"""``marl-aajr evaluate``: play a trained team with and without attacks on its observations."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marl_aajr.cli.teaching import guide, told

if TYPE_CHECKING:
    from rich.table import Table

SUITE = "quick"
"""The suite where neither a suite nor an attack is named."""

EPSILONS = (0.05, 0.1, 0.2)
"""Sizes of named attacks where none is named: around the ε that methods train against by default."""

HELP = guide(
    "Play a finished run's team without and with attacks on what it observes. The result is kept in "
    "RUN/evaluations, where compare finds it. Attacked episodes use the seeds of the clean ones.",
    "marl-aajr evaluate runs/study-3",
    "marl-aajr evaluate runs/study-3 --suite standard --surrogate runs/study-4",
    "marl-aajr evaluate runs/study-3 --attack pgd --epsilon 0.1 --epsilon 0.2",
    "marl-aajr evaluate runs/study-3 --suite full --json > result.json",
)


def evaluate(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml",
            help=told("Protocol: quick (seconds), standard, full, or a file.", f"{SUITE}, unless --attack"),
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name of [b]list attacks[/b], beside or instead of a suite; may be repeated.",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FLOAT",
            help=told(
                "Size of the attacks; may be repeated.",
                f"the suite's, or {' '.join(f'{size:g}' for size in EPSILONS)}",
            ),
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            metavar="raw|network",
            help=told(
                "Units of epsilon: the environment's, or behind the observation filter.", "the suite's"
            ),
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help=told("Episodes without attack, and for each attack and size.", "the suite's, or 100"),
        ),
    ] = None,
    selection_episodes: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help=told(
                "Other episodes, on which the worst attack of each size is chosen.",
                "the suite's, or 0: none is",
            ),
        ),
    ] = None,
    actions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="greedy|sampled",
            help=told("How actions are taken; may be repeated.", "the suite's, or greedy"),
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
    agents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=told("Attack this agent of the team only; may be repeated.", "all")
        ),
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Another run, to compute the perturbations of [b]transfer[/b] on; may be repeated.",
        ),
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND\\[:AGENT,…]",
            help="Let [b]random[/b] or [b]idle[/b] agents play in the place of those named, together, or of "
            "each attacked agent in turn; may be repeated.",
        ),
    ] = None,
    adversary: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="A run of [b]adversary train[/b]: let it play against this team; may be repeated.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="INT", help="Ray workers that share the rows; the result is the same.")
    ] = 1,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one object: clean_return, attacks (a list of attack, epsilon, return, low, high), "
            "worst, checks.",
        ),
    ] = False,
) -> None:
    """Evaluate one run and print what came out."""
    if suite is None and not attack:
        suite = SUITE
    sizes = epsilon or (EPSILONS if suite is None else ())
    # Whatever a library prints must not get between the braces.
    with contextlib.redirect_stdout(sys.stderr):
        result = _evaluate(
            run,
            suite=suite,
            attacks=attack or (),
            epsilons=sizes,
            units=units,
            episodes=episodes,
            selection_episodes=selection_episodes,
            actions=actions,
            seed=seed,
            team=team,
            agents=agents,
            surrogates=surrogate or (),
            replace=replace or (),
            adversaries=adversary or (),
            workers=workers,
        )
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
        return
    _show(result, run)


def _show(result: Mapping[str, Any], run: Path) -> None:
    from rich.console import Console

    console = Console()
    for check in result["checks"]:
        if check["verdict"] != "pass":
            word = "FAILED" if check["verdict"] == "fail" else "Note"
            console.print(f"{word}: {check['text']}", highlight=False, markup=False)
    whom = (
        "" if len(result["agents"]) == len(result["teams"]) else f" ({', '.join(result['agents'])} attacked)"
    )
    for rows in (result, *result["others"]):
        console.print(
            f"Team {result['team']}{whom}, {result['episodes']} episodes, {rows['actions']} actions",
            markup=False,
        )
        console.print(table(rows, level=result["interval"]["level"]))
    for skipped in result["skipped"]:
        console.print(f"Left out: {skipped['attack']}: {skipped['reason']}", highlight=False, markup=False)
    name = shlex.quote(str(run))
    console.print(f"On a page: marl-aajr compare {name}", soft_wrap=True, highlight=False, markup=False)


def table(rows: Mapping[str, Any], *, level: float) -> Table:
    """What was played with one kind of actions, as ``--json`` prints it, as rows.

    Args:
        rows: one file of RUN/evaluations, or one of its ``others``.
        level: of the intervals.
    """
    from rich.table import Table

    shown = Table()
    shown.add_column("attack")
    for heading in ("ε", "return", f"{level:.0%} interval", "actions changed"):
        shown.add_column(heading, justify="right")
    shown.add_row("none", "", *_numbers(rows["clean"]), "")
    worst = {(row["attack"], row["settings"], row["epsilon"]) for row in rows["worst"]}
    for attack in rows["attacks"]:
        changed = attack.get("success_rate")
        share = "" if changed is None else f"{changed:.0%}"
        strongest = (attack["attack"], attack["settings"], attack["epsilon"]) in worst
        shown.add_row(
            f"{attack['attack']} (worst)" if strongest else attack["attack"],
            f"{attack['epsilon']:g}",
            *_numbers(attack),
            share,
        )
    for row in rows["adversarial_agents"]:
        name = f"{row['kind']} {', '.join(row['agents'])}"
        shown.add_row(f"{name} (worst)" if row["worst"] else name, "", *_numbers(row), "")
    if worst:
        shown.caption = "worst of its size: chosen on other episodes than these"
    return shown


def _numbers(outcome: Mapping[str, Any]) -> tuple[str, str]:
    low, high = outcome["low"], outcome["high"]
    return f"{outcome['return']:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}"


def _evaluate(run: Path, **protocol: Any) -> dict[str, Any]:
    """The evaluation as its file has it, with a bar while it plays."""
    from rich.console import Console

    from marl_aajr.cli.progress import PlayingProgress, waiting

    console = Console(stderr=True)
    with waiting("Loading torch", console=console):
        from marl_aajr.evaluation import evaluate_run
    with PlayingProgress(console) as progress:
        evaluation = evaluate_run(run, on_progress=progress, **protocol)
    return evaluation.to_json()
