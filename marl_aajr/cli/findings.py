"""What an evaluation found, for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def show(result: Mapping[str, Any], run: Path, *, kept: Path | None = None) -> None:
    """Print an evaluation.

    Args:
        result: as `--json` prints it.
        run: its folder.
        kept: where the result is; None: in the run's folder, where `compare` finds it.
    """
    from rich.console import Console

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    for check in result["checks"]:
        if check["verdict"] != "pass":
            say(f"{'FAILED' if check['verdict'] == 'fail' else 'Note'}: {check['text']}")
    for rows in (result, *result["others"]):
        say(f"{_headline(result)}, {result['episodes']} episodes, {rows['actions']} actions")
        for line in _limits(result):
            say(line)
        console.print(table(rows, agents=result["agents"], level=result["interval"]["level"]))
        for line in _weakest(rows):
            say(line)
    for skipped in result["skipped"]:
        say(f"Left out: {skipped['attack']}: {skipped['reason']}")
    others = sorted(set(result["teams"].values()) - {result["team"]})
    if others:
        say(f"Other teams, by --team: {', '.join(others)}")
    if kept is not None:
        console.print(f"Kept in {kept}", soft_wrap=True, highlight=False, markup=False)
        return
    name = shlex.quote(str(run))
    console.print(f"On a page: marl-aajr compare {name}", soft_wrap=True, highlight=False, markup=False)


def table(rows: Mapping[str, Any], *, agents: list[str], level: float) -> Table:
    """What was played with one kind of actions, as rows.

    Args:
        rows: one file of RUN/evaluations, or one of its `others`.
        agents: whom the evaluation attacks; a row of fewer names them.
        level: of the intervals.
    """
    from rich.table import Table

    shown = Table()
    shown.add_column("attack")
    for heading in ("ε", "return", f"{level:.0%} interval", "actions changed"):
        shown.add_column(heading, justify="right")
    shown.add_row("none", "", *_numbers(rows["clean"]), "")
    marks = {(row["attack"], row["settings"], row["epsilon"]): _mark(row) for row in rows["worst"]}
    for attack in rows["attacks"]:
        name = attack["attack"]
        if attack["agents"] != agents:
            name += f" on {', '.join(attack['agents'])}"
        mark = marks.get((attack["attack"], attack["settings"], attack["epsilon"]))
        shown.add_row(
            f"{name} ({mark})" if mark else name,
            f"{attack['epsilon']:g}",
            *_numbers(attack),
            f"{attack['success_rate']:.0%}",
        )
    for row in rows["adversarial_agents"]:
        name = f"{row['kind']} {', '.join(row['agents'])}"
        shown.add_row(f"{name} (worst)" if row["worst"] else name, "", *_numbers(row), "")
    notes = []
    groups = ["size"] if marks else []
    groups += ["kind"] if any(row["worst"] for row in rows["adversarial_agents"]) else []
    if groups:
        notes.append(f"worst of its {' or '.join(groups)}: chosen on other episodes than these")
    if "worst?" in marks.values():
        notes.append("worst?: within noise of the next")
    if any(row["budget"] != "every step" or row["agents"] != agents for row in rows["attacks"]):
        notes.append("actions changed: of the decisions that were attacked")
    shown.caption = "; ".join(notes) or None
    return shown


def _headline(result: Mapping[str, Any]) -> str:
    """Which team, and who of it is attacked."""
    members = [agent for agent, team in result["teams"].items() if team == result["team"]]
    whom = "" if result["agents"] == members else f" ({', '.join(result['agents'])} attacked)"
    return f"Team {result['team']}{whom}"


def _limits(result: Mapping[str, Any]) -> Iterator[str]:
    """What the adversary may spend, where that is not everything."""
    if result["budget"]:
        paces = sorted({row["budget"] for row in result["attacks"]} - {"every step"})
        yield f"Budget {result['budget']}" + (f": {', '.join(paces)}" if paces else "")
    if result["norm"] != "linf":
        yield f"ε is the {result['norm']} norm of a whole perturbation"


def _mark(worst: Mapping[str, Any]) -> str:
    """`worst`; with a question mark where its lead over the next may be chance."""
    rival = worst["runner_up"]
    sure = rival is None or (rival["high"] is not None and rival["high"] < 0)
    return "worst" if sure else "worst?"


def _weakest(rows: Mapping[str, Any]) -> Iterator[str]:
    """One line for each of the worst attacks that was tried on each agent alone, the lowest return first."""
    from marl_aajr.evaluation.outcomes import paired_difference

    alone: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows["subsets"]:
        if len(row["agents"]) == 1:
            alone.setdefault((row["attack"], row["settings"], row["epsilon"]), []).append(row)
    worst = {(row["attack"], row["settings"], row["epsilon"]) for row in rows["worst"]}
    for (attack, settings, epsilon), tried in alone.items():
        if (attack, settings, epsilon) not in worst or len(tried) < 2:
            continue
        tried.sort(key=lambda row: row["selection_return"])
        found = ", ".join(f"{row['agents'][0]} {row['selection_return']:.1f}" for row in tried)
        first, second = (tuple(row["selection_returns"]) for row in tried[:2])
        sure = paired_difference(first, second).negative
        said = f"{tried[0]['agents'][0]} is the weakest link" if sure else "no clear weakest link"
        found += f", against {rows['clean_selection_return']:.1f} without attack"
        yield f"Attacked alone, {attack} at ε = {epsilon:g}: {found}; {said}"


def _numbers(outcome: Mapping[str, Any]) -> tuple[str, str]:
    low, high = outcome["low"], outcome["high"]
    return f"{outcome['return']:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}"
