"""The weakest link: which agents cost a team most when they are lied to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from marl_aajr.evaluation.outcomes import AttackSpec, SubsetOutcome
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.evaluation.statistics import paired_difference
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.conditions import Key, exact, keys_of
from marl_aajr.report.estimates import NOTHING, Block, Cell, Line, count, number, size
from marl_aajr.report.protocol import Results

_Agents = tuple[str, ...]


class _Place(NamedTuple):
    """What may be compared: as many agents attacked by the same size, within one budget, on as many episodes.

    Attributes:
        epsilon: the size.
        agents: how many are attacked.
        limits: among whom, and the budget, in words; empty: among all, at every step.
        episodes: for the selection.
    """

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

    Attributes:
        attack: its name.
        clean: return of the same episodes without an attack; None: not played.
        tried: by agents.
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


def weakest_links(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Per size of attack, number of agents and budget, the return that an attack on each subset leaves.

    The returns are those of the selection episodes, of each run under the attack that hurts it most there, of
    those that all runs faced; a method's is the mean over its runs. Empty where no subsets were tried.
    """
    runs = [run for row in comparison.rows for run in row.runs]
    shared = set.intersection(*(set(keys_of(run.played).values()) for run in runs))
    found = {id(run): _worst(run, shared) for run in runs}
    places = sorted({place for searches in found.values() for place in searches})
    return tuple(
        Block(str(place), tuple(_lines([_at(row, found, place) for row in comparison.rows], decimals)))
        for place in places
    )


def _worst(run: Results, shared: Collection[Key]) -> dict[_Place, _Search]:
    """Of each place the search that found the lowest return; of equals, one that knows the clean return."""
    found: dict[_Place, list[_Search]] = defaultdict(list)
    for place, search in _searches(run, shared):
        found[place].append(search)
    return {
        place: min(searches, key=lambda search: (search.ordered[0].mean, search.clean is None))
        for place, searches in found.items()
    }


def _searches(run: Results, shared: Collection[Key]) -> Iterator[tuple[_Place, _Search]]:
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
                limits = ", ".join(filter(None, (_among(evaluation), key.budget)))
                place = _Place(key.epsilon, agents, limits, evaluation.selection_episodes)
                yield place, _Search(key.name, rows.clean_selection_return, subsets)


def _among(evaluation: Evaluation) -> str:
    everybody = set(evaluation.agents) == set(evaluation.members)
    return "" if everybody else f"among {', '.join(evaluation.agents)}"


def _at(row: Row, found: Mapping[int, Mapping[_Place, _Search]], place: _Place) -> list[_Search]:
    """What the runs of a method hold of a place."""
    return [found[id(run)][place] for run in row.runs if place in found[id(run)]]


def _lines(searches: Sequence[Sequence[_Search]], decimals: int) -> Iterator[Line]:
    """A line without an attack, where it is known, and one for each subset; a cell for each method."""
    if any(search.clean is not None for own in searches for search in own):
        yield Line("no attack", tuple(_clean(own, decimals) for own in searches))
    for agents in dict.fromkeys(agents for own in searches for search in own for agents in search.tried):
        yield Line(", ".join(agents), tuple(_attacked(own, agents, decimals) for own in searches))


def _clean(searches: Sequence[_Search], decimals: int) -> Cell:
    known = [search.clean for search in searches if search.clean is not None]
    return Cell(number(sum(known) / len(known), decimals=decimals)) if known else NOTHING


def _attacked(searches: Sequence[_Search], agents: _Agents, decimals: int) -> Cell:
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
