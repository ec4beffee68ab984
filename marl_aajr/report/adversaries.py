"""Adversaries that learn, and agents that are adversaries.

A learned observation adversary sees further than one step, so it should leave less return than the myopic
attacks of its size. One that leaves more was trained too little: that says nothing of the victim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats

from marl_aajr.evaluation.outcomes import ReplacementOutcome
from marl_aajr.report.comparison import Comparison, Row, estimate_of
from marl_aajr.report.conditions import Condition
from marl_aajr.report.estimates import NOTHING, Block, Cell, Estimate, Line, estimated, marked, number, size
from marl_aajr.report.protocol import Results

LEARNED = "learned"
"""What an attack asks of the policy, as evaluations name it, when it was trained against it."""

_SURE = 0.975

_Who = tuple[str, tuple[str, ...]]


def learned(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Each learned adversary against the strongest of its size that is not learned; empty without any."""
    found = _learned(comparison)
    by_size: dict[tuple[float, str], list[Condition]] = defaultdict(list)
    for condition in comparison.conditions:
        if condition in found:
            by_size[condition.epsilon, condition.limits].append(condition)
    return tuple(
        Block(
            size(epsilon) + (f", {limits}" if limits else ""),
            tuple(
                line
                for condition in conditions
                for line in _against_myopic(
                    comparison, condition, _myopic(comparison, condition, found), decimals
                )
            ),
        )
        for (epsilon, limits), conditions in sorted(by_size.items())
    )


def undertrained(comparison: Comparison) -> tuple[str, ...]:
    """In words: which learned adversaries are weaker than a myopic attack, for how many runs."""
    found = _learned(comparison)
    lines = []
    for condition in comparison.conditions:
        others = _myopic(comparison, condition, found)
        if condition not in found or not others:
            continue
        runs = [run for row in comparison.rows for run in row.runs]
        weak = sum(_behind(run, condition, others) for run in runs)
        if weak:
            lines.append(
                f"{condition.attack} at {size(condition.epsilon)} leaves more return than a myopic attack in "
                f"{weak} of {len(runs)} runs: it is undertrained there, and no evidence of robustness"
            )
    return tuple(lines)


def replaced(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Return with agents replaced, by kind; empty where nobody was.

    Several replacements of the same agents by the same kind (adversaries of several seeds) count with the
    worst of each run, by the selection episodes where there are any.
    """
    rows = comparison.rows
    per_run = {id(run): _worst(run) for row in rows for run in row.runs}
    who = dict.fromkeys(key for found in per_run.values() for key in found)

    def line(key: _Who) -> Line:
        found = [[per_run[id(run)].get(key) for run in row.runs] for row in rows]
        cells = (
            _replaced(outcomes, level=comparison.protocol.level, decimals=decimals) for outcomes in found
        )
        return Line(", ".join(key[1]), tuple(cells))

    return tuple(
        Block(kind.capitalize(), tuple(line(key) for key in who if key[0] == kind))
        for kind in dict.fromkeys(kind for kind, _ in who)
    )


def _replaced(outcomes: Sequence[ReplacementOutcome | None], *, level: float, decimals: int) -> Cell:
    known = [outcome for outcome in outcomes if outcome is not None]
    if len(known) < len(outcomes):
        return NOTHING
    loyal = sum(outcome.loyal_return for outcome in known) / len(known)
    note = f"the others {number(loyal, decimals=decimals)}"
    mark = "worst" if 2 * sum(outcome.worst for outcome in known) > len(known) else ""
    return estimated(estimate_of(known, level=level), decimals=decimals, note=note, mark=mark)


def _worst(run: Results) -> dict[_Who, ReplacementOutcome]:
    found: dict[_Who, ReplacementOutcome] = {}
    for rows, _ in run.played:
        for outcome in rows.adversarial_agents:
            key = (outcome.kind, outcome.agents)
            if key not in found or _harm(outcome) < _harm(found[key]):
                found[key] = outcome
    return found


def _harm(outcome: ReplacementOutcome) -> float:
    return outcome.mean if outcome.selection_return is None else outcome.selection_return


def _learned(comparison: Comparison) -> set[Condition]:
    run = comparison.rows[0].runs[0]
    return {condition for condition, outcome in run.attacked.items() if outcome.attack.access == LEARNED}


def _myopic(comparison: Comparison, condition: Condition, found: set[Condition]) -> list[Condition]:
    return [
        other
        for other in comparison.conditions
        if other not in found and (other.epsilon, other.limits) == (condition.epsilon, condition.limits)
    ]


def _against_myopic(
    comparison: Comparison, condition: Condition, others: Sequence[Condition], decimals: int
) -> tuple[Line, ...]:
    def note(row: Row) -> str:
        weak = sum(_behind(run, condition, others) for run in row.runs) if others else 0
        return f"undertrained in {weak} of {len(row.runs)}" if weak else ""

    def strongest(row: Row) -> Estimate:
        found = [min((run.attacked[o] for o in others), key=lambda outcome: outcome.mean) for run in row.runs]
        return estimate_of(found, level=comparison.protocol.level)

    rows = comparison.rows
    own = marked(condition.attack, rows, lambda row: row.robust[condition], note=note, decimals=decimals)
    if not others:
        return (own,)
    return own, marked("strongest that is not learned", rows, strongest, decimals=decimals)


def _behind(run: Results, condition: Condition, others: Sequence[Condition]) -> bool:
    """Whether the adversary leaves more than the strongest other, beyond doubt on the same episodes."""
    strongest = min((run.attacked[other] for other in others), key=lambda outcome: outcome.mean)
    gap = np.subtract(run.attacked[condition].returns, strongest.returns)
    if len(gap) < 2:
        return False
    return bool(gap.mean() > stats.t.ppf(_SURE, len(gap) - 1) * stats.sem(gap))
