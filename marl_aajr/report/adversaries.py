"""Tables of observation adversaries: learned ones, that of training, and the agents whose attack costs most.

A learned observation adversary sees further than one step, so it should leave less return than the myopic
attacks of its size. One that leaves more was trained too little: that says nothing of the victim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.result import SubsetOutcome
from marl_aajr.evaluation.worst_attack import paired_difference
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.conditions import Condition, Key, exact, keys_of
from marl_aajr.report.estimates import (
    NOTHING,
    Block,
    Cell,
    Estimate,
    Line,
    count,
    estimate_of,
    estimated,
    marked,
    number,
    size,
)
from marl_aajr.report.ranking import unranked
from marl_aajr.report.run_results import RunResults

_Agents = tuple[str, ...]


def learned(comparison: Comparison) -> tuple[Block, ...]:
    """Each learned adversary against the strongest of its size that is not learned; empty without any."""
    by_size: dict[tuple[float, str], list[Line]] = defaultdict(list)
    for condition, others in _against_myopic(comparison):
        by_size[condition.epsilon, condition.limits] += _beside(comparison, condition, others)
    return tuple(
        Block(size(epsilon) + (f", {limits}" if limits else ""), tuple(lines))
        for (epsilon, limits), lines in sorted(by_size.items())
    )


def undertrained(comparison: Comparison) -> Iterator[str]:
    """The learned adversaries that are weaker than a myopic attack, and for how many runs, in words."""
    runs = comparison.runs
    for condition, others in _against_myopic(comparison):
        if weak := sum(_behind(run, condition, others) for run in runs):
            yield (
                f"{condition.attack} at {size(condition.epsilon)} leaves more return than a myopic attack in "
                f"{weak} of {len(runs)} runs: it is undertrained there, and no evidence of robustness"
            )


def _against_myopic(comparison: Comparison) -> Iterator[tuple[Condition, list[Condition]]]:
    """Each learned adversary, and the attacks of its size and limits that are not learned."""
    attacked = comparison.runs[0].attacked
    found = {condition for condition in attacked if attacked[condition].attack.access == "learned"}
    myopic = [condition for condition in comparison.conditions if condition not in found]
    for one in comparison.conditions:
        if one in found:
            yield one, [c for c in myopic if (c.epsilon, c.limits) == (one.epsilon, one.limits)]


def _beside(comparison: Comparison, condition: Condition, others: Sequence[Condition]) -> Iterator[Line]:
    """The line of a learned adversary, and that of the strongest other where there is any."""
    rows, decimals, out = comparison.rows, comparison.decimals, unranked(comparison)

    def note(row: MethodRow) -> str:
        weak = sum(_behind(run, condition, others) for run in row.runs)
        return f"undertrained in {weak} of {len(row.runs)}" if weak else ""

    def strongest(row: MethodRow) -> Estimate:
        return estimate_of([_strongest(run, others) for run in row.runs], level=comparison.protocol.level)

    def own(row: MethodRow) -> Estimate:
        return row.robust[condition]

    yield marked(condition.attack, rows, own, note=note, decimals=decimals, unranked=out)
    if others:
        yield marked("strongest that is not learned", rows, strongest, decimals=decimals, unranked=out)


def _strongest(run: RunResults, conditions: Sequence[Condition]) -> AttackOutcome:
    return min((run.attacked[condition] for condition in conditions), key=lambda outcome: outcome.mean)


def _behind(run: RunResults, condition: Condition, others: Sequence[Condition]) -> bool:
    """Whether the adversary leaves more than the strongest other, beyond doubt on the same episodes."""
    attacked = run.attacked[condition].returns
    return bool(others) and paired_difference(_strongest(run, others).returns, attacked).negative


def of_training(comparison: Comparison) -> tuple[Block, ...]:
    """By ε, each run under the attack of its training and the strongest of that size; empty without any.

    Their difference is over the same episodes of the same runs.
    """
    known = [[_training_attack(run) for run in row.runs] for row in comparison.rows]
    sizes = sorted({outcome.epsilon for own in known for outcome in own if outcome})
    return tuple(Block(size(epsilon), tuple(_known(comparison, known, epsilon))) for epsilon in sizes)


def _training_attack(run: RunResults) -> AttackOutcome | None:
    return next((rows.training_attack for rows, _ in run.played if rows.training_attack), None)


def _known(
    comparison: Comparison, known: Sequence[Sequence[AttackOutcome | None]], epsilon: float
) -> Iterator[Line]:
    level, decimals = comparison.protocol.level, comparison.decimals
    lines: dict[str, list[Cell]] = {"attack of training": [], "strongest of its size": [], "gap": []}
    for row, own in zip(comparison.rows, known, strict=True):
        faced = [outcome for outcome in own if outcome and outcome.epsilon == epsilon]
        shown: list[Estimate] = []
        if len(faced) == len(own):
            shown = [estimate_of(faced, level=level)]
            if epsilon in comparison.epsilons:
                strongest = [run.own_side.strongest(epsilon) for run in row.runs]
                shown += [estimate_of(strongest, level=level), _gap(faced, strongest, level=level)]
        cells = [estimated(estimate, decimals=decimals) for estimate in shown]
        for line, cell in zip(lines.values(), [*cells, NOTHING, NOTHING, NOTHING][:3], strict=True):
            line.append(cell)
    return (Line(header, tuple(cells)) for header, cells in lines.items())


def _gap(known: Sequence[Outcome], strongest: Sequence[Outcome], *, level: float) -> Estimate:
    """Mean difference of the returns, over runs where there are several, else over episodes."""
    pairs = list(zip(known, strongest, strict=True))
    if len(pairs) > 1:
        return Estimate.over("runs", [one.mean - other.mean for one, other in pairs], level=level)
    ((one, other),) = pairs
    return Estimate.over("episodes", np.subtract(one.returns, other.returns).tolist(), level=level)


class _Place(NamedTuple):
    """The searches that may be compared; `limits` say among whom, if not among all, and the budget."""

    epsilon: float
    agents: int
    limits: str
    episodes: int

    def __str__(self) -> str:
        parts = (size(self.epsilon), f"{count(self.agents, 'agent')} attacked", self.limits)
        return f"{', '.join(filter(None, parts))} ({count(self.episodes, 'episode')})"


@dataclass(frozen=True)
class _Search:
    """One attack on subset after subset, at least two, in one evaluation.

    `clean` is the return of the same episodes without an attack, if they were played.
    """

    attack: str
    clean: float | None
    tried: Mapping[_Agents, SubsetOutcome]

    @property
    def ordered(self) -> list[SubsetOutcome]:
        """Those that leave the least return first."""
        return sorted(self.tried.values(), key=lambda subset: subset.mean)

    @property
    def weakest(self) -> _Agents | None:
        """The agents that cost most, where that is beyond doubt on the same episodes."""
        first, second = (subset.returns for subset in self.ordered[:2])
        sure = len(first) == len(second) and paired_difference(first, second).negative
        return self.ordered[0].agents if sure else None


def weakest_links(comparison: Comparison) -> tuple[Block, ...]:
    """Per size of attack, number of agents and budget, the return that an attack on each subset leaves.

    The returns are those of the selection episodes, of each run under the attack that hurts it most there, of
    those that all runs faced; a method's is the mean over its runs. Empty where no subsets were tried.
    """
    shared = set.intersection(*(set(keys_of(run.played).values()) for run in comparison.runs))
    per_row = [[_worst_searches(run, shared) for run in row.runs] for row in comparison.rows]
    places = sorted({place for row in per_row for found in row for place in found})
    searched = {p: [[found[p] for found in runs if p in found] for runs in per_row] for p in places}
    return tuple(Block(str(p), tuple(_lines(of, comparison.decimals))) for p, of in searched.items())


def _worst_searches(run: RunResults, shared: Collection[Key]) -> dict[_Place, _Search]:
    """The search of each place that found the lowest return; of equals, one that knows the clean return."""
    found = grouped(_searches(run, shared))
    return {
        place: min(searches, key=lambda search: (search.ordered[0].mean, search.clean is None))
        for place, searches in found.items()
    }


def _searches(run: RunResults, shared: Collection[Key]) -> Iterator[tuple[_Place, _Search]]:
    keys = keys_of(run.played)
    for rows, evaluation in run.played:
        faced: dict[AttackSpec, Key] = {
            row.attack: key for row in rows.attacks if (key := keys[exact(row, evaluation)]) in shared
        }
        tried: dict[tuple[Key, int], dict[_Agents, SubsetOutcome]] = defaultdict(dict)
        for subset in rows.subsets:
            if found := faced.get(subset.attack):
                tried[found, len(subset.agents)][subset.agents] = subset
        for (key, agents), subsets in tried.items():
            if len(subsets) > 1:
                everybody = set(evaluation.agents) == set(evaluation.members)
                among = "" if everybody else f"among {', '.join(evaluation.agents)}"
                limits = ", ".join(filter(None, (among, key.budget)))
                place = _Place(key.attack.epsilon, agents, limits, evaluation.selection_episodes)
                yield place, _Search(key.attack.name, rows.clean_selection_return, subsets)


def _lines(of_methods: Sequence[Sequence[_Search]], decimals: int) -> Iterator[Line]:
    """A line without an attack, where it is known, and one for each subset; a cell for each method."""
    clean = [[search.clean for search in own if search.clean is not None] for own in of_methods]
    if any(clean):
        cells = [Cell(number(sum(of) / len(of), decimals=decimals)) if of else NOTHING for of in clean]
        yield Line("no attack", tuple(cells))
    for agents in dict.fromkeys(agents for own in of_methods for search in own for agents in search.tried):
        yield Line(", ".join(agents), tuple(_cell(own, agents, decimals) for own in of_methods))


def _cell(searches: Sequence[_Search], agents: _Agents, decimals: int) -> Cell:
    tried = [search for search in searches if agents in search.tried]
    if not tried:
        return NOTHING
    mean = sum(search.tried[agents].mean for search in tried) / len(tried)
    weakest = sum(search.weakest == agents for search in searches)
    return Cell(
        number(mean, decimals=decimals),
        under=", ".join(dict.fromkeys(search.attack for search in tried)),
        note=f"weakest in {weakest} of {len(searches)}" if weakest else "",
        mark="worst" if 2 * weakest > len(searches) else "",
    )
