"""`marl-aajr adversary train`: learn to hurt a finished run's team."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from marl_aajr.cli.display import Interrupt, TrainingProgress, say, waiting
from marl_aajr.cli.options import guide, options, takes, values
from marl_aajr.core.checks import decimals_of, written

if TYPE_CHECKING:
    from rich.console import Console

    from marl_aajr.adversaries.request import AdversaryRequest

app = typer.Typer(help="Adversaries that learn.", no_args_is_help=True, rich_markup_mode="rich")

HELP = guide(
    "Train an adversary against the frozen team of a finished run, by PPO. [b]sa-rl[/b] and [b]pa-ad[/b] "
    "change what its agents observe, by at most --epsilon: sa-rl's actions are the changes, pa-ad chooses "
    "what an agent shall be made to do and a gradient ascent finds the change. [b]traitor[/b] takes the "
    "place of --agents of the team, [b]opponent[/b] plays the other side, and so does [b]best-response[/b], "
    "paid what the team loses and searched for more widely: how exploitable the team is. Observation "
    "adversaries begin with what PGD does. The adversary is kept in VICTIM_RUN/adversaries, where "
    "evaluate --suite full looks for it. Ctrl-C finishes the iteration and says how to go "
    "on; a second one stops at once.",
    "marl-aajr adversary train runs/spread-3 --kind pa-ad --epsilon 0.1",
    "marl-aajr adversary train runs/spread-3 --kind sa-rl --epsilon 0.1 --joint",
    "marl-aajr adversary train runs/talk-3 --kind sa-rl --epsilon 0.1 --channel messages",
    "marl-aajr adversary train runs/spread-3 --kind traitor --agents agent_0",
    "marl-aajr adversary train runs/spread-3 --kind traitor --agents agent_0 --alpha 0.1",
    "marl-aajr adversary train runs/tag-3 --kind best-response",
    "marl-aajr adversary train --resume --out runs/spread-3/adversaries/pa-ad-eps0.1",
    "marl-aajr evaluate runs/spread-3 --adversary runs/spread-3/adversaries/pa-ad-eps0.1",
)


SETTINGS = options(
    "marl_aajr.adversaries.request.AdversaryRequest",
    "kind epsilon norm units agents joint alpha mixed actions search seeds warm_start env_steps seed",
    repeated=["agents"],
) + options(
    "marl_aajr.adversaries.observation_game.ObservationThreat",
    "channels",
    under="threat",
    flags={"channels": "--channel"},
    repeated=["channels"],
)


@app.command("train", help=HELP)
@takes(*SETTINGS)
def train(
    victim_run: Path | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **typed: Any,
) -> None:
    """Train one adversary and say how strong it is.

    Args:
        victim_run ([VICTIM_RUN]): A finished run's folder; not with --resume.
        out (FOLDER): Its folder. Default: VICTIM_RUN/adversaries/<kind>-eps<epsilon>….
        resume: Go on with the adversary in --out, as it was asked for.
        overwrite: Replace the adversary in --out, if there is one.
        typed: What was given of `SETTINGS`.
    """
    from rich.console import Console

    console, asked = Console(stderr=True), values(SETTINGS, typed)
    with waiting("Loading torch and Ray", console=console):
        from marl_aajr.adversaries.training import train_adversary
    request, victims = _request(victim_run, asked, out, resume=resume)
    heading = f"{request.kind} against {victims}, seed {request.seed}, {request.steps:,} env steps"
    progress = TrainingProgress(request.steps, console=console, heading=heading, earned="adversary's return")
    with Interrupt(progress) as interrupt, progress:
        folder = train_adversary(
            victims,
            out=out,
            resume=resume,
            overwrite=overwrite,
            on_iteration=progress,
            should_stop=interrupt,
            on_phase=progress.phase,
            **dict(request),
        )
    _report(folder, victims, console, stopped=interrupt.exit_code)


def _request(
    victim_run: Path | None, asked: Mapping[str, Any], out: Path | None, *, resume: bool
) -> tuple[AdversaryRequest, Path]:
    """The adversary that the command line means, and the victims' run."""
    from marl_aajr.adversaries.request import AdversaryRequest
    from marl_aajr.adversaries.store import request_of
    from marl_aajr.training.fields import put, validated

    if resume:
        if out is None or victim_run is not None or "kind" in asked:
            raise ValueError("expected --resume with --out FOLDER and no other adversary; it knows the rest")
        return request_of(out)
    if victim_run is None or "kind" not in asked:
        raise ValueError("expected VICTIM_RUN and --kind; see marl-aajr adversary train --help")
    given: dict[str, Any] = {}
    for key, value in asked.items():
        put(given, key, value)
    return validated(AdversaryRequest, given), victim_run


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
    from marl_aajr.adversaries.learning_curve import last_rise

    found = record["selection"]
    mean, low, high = (record["lead"][name] for name in ("mean", "low", "high"))
    decimals = decimals_of([*found.values()], widths=[high - low])
    returns = {name: written(-loss, decimals) for name, loss in found.items()}
    gap, least, most = (f"{'+' if x < 0 else ''}{written(-x, decimals)}" for x in (mean, high, low))
    apart = f"{gap}, paired 99 % interval {least} to {most}"
    where = "On other episodes than it learned on the team's return"
    if "pgd" not in found:
        falls = "falls" if low > 0 else "rises" if high < 0 else "does not clearly change:"
        rise = last_rise(record["curve"])
        rising = rise is not None and rise.goes_on(lost=mean)
        more = " It was still learning when its training ended: it can do more harm." if rising else ""
        return f"{where} {falls} from {returns['clean']} to {returns['lost']} ({apart}).{more}"
    word = "stronger than" if low > 0 else "weaker than" if high < 0 else "not distinguishable from"
    undertrained = ": undertrained, which is no evidence of robustness" if record["undertrained"] else ""
    return (
        f"{where} is {returns[record['kept']]}, {returns['pgd']} under PGD and {returns['clean']} "
        f"without attack: {word} PGD ({apart}){undertrained}."
    )
