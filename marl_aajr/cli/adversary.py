"""`marl-aajr adversary train`: learn to hurt a finished run's team."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marl_aajr.cli.errors import Interrupt
from marl_aajr.cli.options import guide, told
from marl_aajr.cli.progress import TrainingProgress, say, waiting

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="Adversaries that learn.", no_args_is_help=True, rich_markup_mode="rich")

HELP = guide(
    "Train an adversary against the frozen team of a finished run, by PPO. [b]sa-rl[/b] and [b]pa-ad[/b] "
    "change what its agents observe, by at most --epsilon: sa-rl's actions are the changes, pa-ad chooses "
    "what an agent shall be made to do and a gradient ascent finds the change. [b]traitor[/b] takes the "
    "place of --agents of the team, [b]opponent[/b] plays the other side. Observation adversaries "
    "begin with what PGD does. The adversary is kept in VICTIM_RUN/adversaries, where "
    "evaluate --suite full looks for it. Ctrl-C finishes the iteration and says how to go "
    "on; a second one stops at once.",
    "marl-aajr adversary train runs/study-3 --kind pa-ad --epsilon 0.1",
    "marl-aajr adversary train runs/study-3 --kind sa-rl --epsilon 0.1 --joint",
    "marl-aajr adversary train runs/study-3 --kind traitor --agents agent_0",
    "marl-aajr adversary train --resume --out runs/study-3/adversaries/pa-ad-eps0.1",
    "marl-aajr evaluate runs/study-3 --adversary runs/study-3/adversaries/pa-ad-eps0.1",
)


@app.command("train", help=HELP)
def train(
    victim_run: Annotated[
        Path | None,
        typer.Argument(metavar="[VICTIM_RUN]", help="A finished run's folder; not with --resume."),
    ] = None,
    *,
    kind: Annotated[
        str | None, typer.Option(metavar="sa-rl|pa-ad|traitor|opponent", help="What the adversary does.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="FLOAT", help="Radius of the set of changes (sa-rl and pa-ad), in --units."),
    ] = None,
    norm: Annotated[str, typer.Option(metavar="linf|l2", help="Norm of the set of changes.")] = "linf",
    units: Annotated[
        str,
        typer.Option(
            metavar="raw|network",
            help="Units of epsilon: the environment's, or behind the observation filter.",
        ),
    ] = "raw",
    agents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=told("Whom it lies to, or whose place it takes; may be repeated.", "all who may be"),
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="One adversary with one budget for all attacked agents, not one each."),
    ] = False,
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=told("Settings of PPO to try first, a tenth of the steps each; 1: none.", "3; agents: 1"),
        ),
    ] = None,
    warm_start: Annotated[
        bool,
        typer.Option("--warm-start/--no-warm-start", help="Begin with what PGD does (sa-rl and pa-ad)."),
    ] = True,
    env_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=told(
                "Environment steps, the search included.", "1,000,000; sa-rl: 300,000; agents: 400,000"
            ),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of everything random.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help=told("Its folder.", "VICTIM_RUN/adversaries/<kind>-eps<epsilon>…")
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the adversary in --out, as it was asked for.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the adversary in --out, if there is one.")
    ] = False,
) -> None:
    """Train one adversary and say how strong it is."""
    from rich.console import Console

    console = Console(stderr=True)
    with waiting("Loading torch and Ray", console=console):
        from marl_aajr.adversaries.request import AdversaryRequest
        from marl_aajr.adversaries.store import request_of
        from marl_aajr.adversaries.training import train_as_asked
    if resume:
        if out is None or victim_run is not None or kind is not None:
            raise ValueError("expected --resume with --out FOLDER and no other adversary; it knows the rest")
        request, victims = request_of(out)
    else:
        if victim_run is None or kind is None:
            raise ValueError("expected VICTIM_RUN and --kind; see marl-aajr adversary train --help")
        victims = victim_run
        request = AdversaryRequest(
            kind=kind,  # type: ignore[arg-type]
            epsilon=epsilon,
            norm=norm,  # type: ignore[arg-type]
            units=units,  # type: ignore[arg-type]
            agents=agents or None,
            joint=joint,
            search=search,
            warm_start=warm_start,
            env_steps=env_steps,
            seed=seed,
        )
    heading = f"{request.kind} against {victims}, seed {request.seed}, {request.steps:,} env steps"
    progress = TrainingProgress(request.steps, console=console, heading=heading, earned="adversary's return")
    with Interrupt(announce=progress.finishing, restore=progress.restore) as interrupt, progress:
        folder = train_as_asked(
            request,
            victims,
            out,
            resume=resume,
            overwrite=overwrite,
            on_iteration=progress,
            should_stop=interrupt,
            on_phase=progress.phase,
        )
    _report(folder, victims, console, stopped=interrupt.exit_code)


def _report(folder: Path, victims: Path, console: Console, *, stopped: int) -> None:
    from marl_aajr.adversaries.store import RECORD, is_finished

    name = shlex.quote(str(folder))
    if not is_finished(folder):
        say(console, f"Stopped. To go on:\n  marl-aajr adversary train --resume --out {name}")
        raise typer.Exit(stopped)
    say(console, verdict(json.loads((folder / RECORD).read_text(encoding="utf-8"))))
    say(
        console,
        f"Finished. To judge by it:\n  marl-aajr evaluate {shlex.quote(str(victims))} --adversary {name}",
    )


def verdict(record: Mapping[str, Any]) -> str:
    """How strong an adversary is, in a sentence, from its `adversary.json`."""
    found = record["selection"]
    mean, low, high = (record["lead"][name] for name in ("mean", "low", "high"))
    apart = f"{-mean:+.1f}, paired 99 % interval {-high:+.1f} to {-low:+.1f}"
    where = "On other episodes than it learned on the team's return"
    if "pgd" not in found:
        falls = "falls" if low > 0 else "rises" if high < 0 else "does not clearly change:"
        return f"{where} {falls} from {-found['clean']:.1f} to {-found['lost']:.1f} ({apart})."
    word = "stronger than" if low > 0 else "weaker than" if high < 0 else "not distinguishable from"
    undertrained = ": undertrained, which is no evidence of robustness" if record["undertrained"] else ""
    return (
        f"{where} is {-found[record['kept']]:.1f}, {-found['pgd']:.1f} under PGD and {-found['clean']:.1f} "
        f"without attack: {word} PGD ({apart}){undertrained}."
    )
