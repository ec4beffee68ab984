"""The result of an evaluation as text and tables, for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from marl_aajr.evaluation import ActionsResult, AttackSpec, Evaluation, Outcome, SubsetOutcome


def show(evaluation: Evaluation, run: Path, *, kept: Path | None = None) -> None:
    """Print an evaluation.

    Args:
        evaluation: the result.
        run: the run's folder.
        kept: the file of the result; None: it is in the run's folder, where `compare` finds it.
    """
    from rich.console import Console

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    for check in evaluation.checks:
        if check.verdict != "pass":
            say(f"{'FAILED' if check.verdict == 'fail' else 'Note'}: {check.text}")
    for result in evaluation.results:
        say(f"{_headline(evaluation)}, {evaluation.episodes} episodes, {result.actions} actions")
        for line in _limits(evaluation, result):
            say(line)
        console.print(table(result, agents=evaluation.agents, level=evaluation.level))
        for line in _weakest(result):
            say(line)
    for skipped in evaluation.skipped:
        say(f"Left out: {skipped.attack}: {skipped.reason}")
    others = sorted(set(evaluation.teams.values()) - {evaluation.team})
    if others:
        say(f"Other teams, by --team: {', '.join(others)}")
    if kept is not None:
        console.print(f"Kept in {kept}", soft_wrap=True, highlight=False, markup=False)
        return
    name = shlex.quote(str(run))
    console.print(f"On a page: marl-aajr compare {name}", soft_wrap=True, highlight=False, markup=False)


def table(result: ActionsResult, *, agents: tuple[str, ...], level: float) -> Table:
    """The returns with one kind of actions, row by row.

    Args:
        result: of one kind of actions.
        agents: the agents under attack; a row of fewer names them.
        level: of the intervals.
    """
    from rich.table import Table

    shown = Table()
    shown.add_column("attack")
    for heading in ("ε", "return", f"{level:.0%} interval", "actions changed"):
        shown.add_column(heading, justify="right")
    shown.add_row("none", "", *_numbers(result.clean), "")
    marks = {worst.attack: "worst" if worst.sure else "worst?" for worst in result.worst}
    for row in result.attacks:
        name = row.attack.name
        if row.agents != agents:
            name += f" on {', '.join(row.agents)}"
        mark = marks.get(row.attack)
        shown.add_row(
            f"{name} ({mark})" if mark else name,
            f"{row.epsilon:g}",
            *_numbers(row),
            f"{row.success_rate:.0%}",
        )
    for other in result.adversarial_agents:
        shown.add_row(f"{other.label} (worst)" if other.worst else other.label, "", *_numbers(other), "")
    shown.caption = "; ".join(_notes(result, agents, marks)) or None
    return shown


def _notes(result: ActionsResult, agents: tuple[str, ...], marks: dict[AttackSpec, str]) -> Iterator[str]:
    """The meaning of the marks and columns of a table, as far as they need a word."""
    groups = ["size"] if marks else []
    groups += ["kind"] if any(row.worst for row in result.adversarial_agents) else []
    if groups:
        yield f"worst of its {' or '.join(groups)}: chosen on other episodes than these"
    if "worst?" in marks.values():
        yield "worst?: within noise of the next"
    if any(row.attacked_steps is not None or row.agents != agents for row in result.attacks):
        yield "actions changed: of the decisions that were attacked"


def _headline(evaluation: Evaluation) -> str:
    """The evaluated team, and the attacked agents where they are not all of it."""
    everybody = evaluation.agents == evaluation.members
    return f"Team {evaluation.team}" + ("" if everybody else f" ({', '.join(evaluation.agents)} attacked)")


def _limits(evaluation: Evaluation, result: ActionsResult) -> Iterator[str]:
    """The budget of the adversary, where it is limited, and the norm, where it is not the usual one."""
    if budget := str(evaluation.budget):
        steps = sorted({str(row.attacked_steps) for row in result.attacks if row.attacked_steps is not None})
        yield f"Budget {budget}" + (f": {', '.join(steps)}" if steps else "")
    if evaluation.norm != "linf":
        yield f"ε is the {evaluation.norm} norm of a whole perturbation"


def _weakest(result: ActionsResult) -> Iterator[str]:
    """One line for each of the worst attacks that was tried on each agent alone, the lowest return first."""
    from marl_aajr.evaluation.statistics import paired_difference

    alone: dict[AttackSpec, list[SubsetOutcome]] = {}
    for subset in result.subsets:
        if len(subset.agents) == 1:
            alone.setdefault(subset.attack, []).append(subset)
    worst = {row.attack for row in result.worst}
    for attack, tried in alone.items():
        if attack not in worst or len(tried) < 2:
            continue
        tried.sort(key=lambda subset: subset.mean)
        found = ", ".join(f"{subset.agents[0]} {subset.mean:.1f}" for subset in tried)
        sure = paired_difference(tried[0].returns, tried[1].returns).negative
        said = f"{tried[0].agents[0]} is the weakest link" if sure else "no clear weakest link"
        found += f", against {result.clean_selection_return:.1f} without attack"
        yield f"Attacked alone, {attack.name} at ε = {attack.epsilon:g}: {found}; {said}"


def _numbers(outcome: Outcome) -> tuple[str, str]:
    interval = "" if outcome.low is None else f"{outcome.low:.1f} to {outcome.high:.1f}"
    return f"{outcome.mean:.1f}", interval
