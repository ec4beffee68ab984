"""One table of everybody that a team has met, from friend to foe, for both kinds of games.

In a cooperative game members are replaced, in a competitive one the other side. The return with the own side
and the own members stands first, and every other return beside what was lost to it on the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.best_responses import exploitability
from marl_aajr.evaluation.outcomes import ReplacementOutcome
from marl_aajr.evaluation.pool import CompanyKind, Met, everybody_met
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import NOTHING, Block, Cell, Line, count, estimate_of, estimated, number, some
from marl_aajr.report.run_results import RunResults, mean_over_pool

_TITLES: dict[CompanyKind, str] = {
    "own": "Nobody replaced",
    "partner": "Partners from other runs",
    "stranger": "Strangers: opponents that it did not train with",
    "random": "Random agents",
    "idle": "Idle agents",
    "traitor": "Traitors",
    "opponent": "Opponents trained against it",
    "best-response": "Best responses: opponents trained for what it loses",
}

_Place = tuple[CompanyKind, str]
"""Kind of agents, and the place that they take: agents, the whole team, or the name of an opponent."""


def agents_met(comparison: Comparison) -> tuple[Block, ...]:
    """Return without an attack beside everybody, by kind; empty where a team has met nobody but its own.

    Of several traitors, opponents or best responses in a place (adversaries of several seeds) the one counts
    that leaves least on the selection episodes; of several partners their mean.
    """
    per_row = [[_by_place(run) for run in row.runs] for row in comparison.rows]
    places = dict.fromkeys(place for runs in per_row for found in runs for place in found)
    lines = grouped(
        (
            kind,
            Line(
                where,
                tuple(
                    _cell(comparison, row, [of.get((kind, where), []) for of in runs])
                    for row, runs in zip(comparison.rows, per_row, strict=True)
                ),
            ),
        )
        for kind, where in places
    )
    order = [kind for kind in _TITLES if kind in lines]
    return tuple(Block(_TITLES[kind], tuple(lines[kind])) for kind in order) if len(order) > 1 else ()


def undertrained_responses(comparison: Comparison) -> Iterator[str]:
    """The methods whose best responses have not learned all that they could, in words."""
    weak = [(row.method.label, sum(map(_undertrained, row.runs)), len(row.runs)) for row in comparison.rows]
    if named := [f"{label} ({n} of {count(of, 'run')})" for label, n, of in weak if n]:
        whose = some(named, of=len(comparison.rows), noun="methods")
        yield f"The best responses to {whose} are undertrained: these teams are more exploitable than shown"


def _undertrained(run: RunResults) -> bool:
    found = [exploitability(rows) for rows, _ in run.played]
    return any(one.undertrained for one in found if one is not None)


def _by_place(run: RunResults) -> dict[_Place, list[Met]]:
    """Everybody that a run has met, by kind and place; the files of one run read together."""
    found = [
        ((one.kind, _where(one, evaluation.members)), one)
        for rows, evaluation in run.played
        for one in everybody_met(rows, evaluation.teams, evaluation.team)
    ]
    return {place: _counted(met) for place, met in grouped(found).items()}


def _where(met: Met, members: Sequence[str]) -> str:
    if met.kind == "own":
        return "its own side and members"
    if not met.teammates and met.kind not in ("opponent", "best-response"):
        return met.name or ", ".join(met.agents)
    return "the whole team" if set(met.agents) == set(members) else ", ".join(met.agents)


def _counted(met: Sequence[Met]) -> list[Met]:
    def left(one: Met) -> float:
        chosen_on = one.outcome.selection_return if isinstance(one.outcome, ReplacementOutcome) else None
        return one.outcome.mean if chosen_on is None else chosen_on

    return list(met) if met[0].kind == "partner" else [min(met, key=left)]


def _cell(comparison: Comparison, row: MethodRow, met: Sequence[Sequence[Met]]) -> Cell:
    """Mean over runs, what was lost to play with its own, and the return of those not replaced."""
    if not all(met):
        return NOTHING
    every = [one for each in met for one in each]
    lost = [-one.lost.difference for one in every if one.lost is not None]
    replaced = [one.outcome for one in every if one.teammates]
    rest = [outcome.loyal_return for outcome in replaced if isinstance(outcome, ReplacementOutcome)]
    said = (("lost", lost), ("the others", rest))
    notes = [f"{what} {number(sum(x) / len(x), decimals=comparison.decimals)}" for what, x in said if x]
    weak = sum(map(_undertrained, row.runs)) if every[0].kind == "best-response" else 0
    notes += [f"undertrained in {weak} of {len(row.runs)}"] if weak else []
    worst = 2 * sum(any(one.worst for one in each) for each in met) > len(met)
    means = [mean_over_pool([one.outcome for one in each]) for each in met]
    estimate = estimate_of(means, level=comparison.protocol.level)
    mark = "worst" if worst else ""
    return estimated(estimate, decimals=comparison.decimals, note=", ".join(notes), mark=mark)
