"""The weakest link: which agents cost a team most when they are lied to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from marl_aajr.report.cells import NOTHING, Block, Cell, Line, size
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.protocol import Results
from marl_aajr.report.wording import count, number

_Place = tuple[float, int]
_Agents = tuple[str, ...]


def weakest_links(comparison: Comparison, *, decimals: int) -> tuple[Block, ...]:
    """Per size of attack and number of agents, the return that an attack on each subset leaves.

    The returns are those of the selection episodes, of each run under the attack that hurts it most there; a
    method's is the mean over its runs. Empty where no subsets were tried.
    """
    found = {id(run): _returns(run) for row in comparison.rows for run in row.runs}
    subsets: dict[_Place, dict[_Agents, None]] = defaultdict(dict)
    for returns in found.values():
        for place, by_agents in returns.items():
            subsets[place].update(dict.fromkeys(by_agents))
    return tuple(
        Block(
            f"{size(epsilon)}, {count(k, 'agent')} attacked",
            tuple(
                Line(
                    ", ".join(agents),
                    tuple(_cell(row, found, (epsilon, k), agents, decimals) for row in comparison.rows),
                )
                for agents in tried
            ),
        )
        for (epsilon, k), tried in sorted(subsets.items())
    )


def _returns(run: Results) -> dict[_Place, dict[_Agents, float]]:
    """(ε, number of agents) -> agents -> the lowest return of any attack on them."""
    found: dict[_Place, dict[_Agents, float]] = defaultdict(dict)
    for rows, _ in run.played:
        for tried in rows.subsets:
            own = found[tried.epsilon, len(tried.agents)]
            own[tried.agents] = min(own.get(tried.agents, float("inf")), tried.selection_return)
    return found


def _cell(
    row: Row,
    found: Mapping[int, Mapping[_Place, Mapping[_Agents, float]]],
    place: _Place,
    agents: _Agents,
    decimals: int,
) -> Cell:
    runs = [found[id(run)].get(place, {}) for run in row.runs]
    returns = [of[agents] for of in runs if agents in of]
    if not returns:
        return NOTHING
    weakest = sum(agents in of and of[agents] == min(of.values()) for of in runs)
    note = f"weakest in {weakest} of {len(runs)}" if weakest else ""
    mean = number(sum(returns) / len(returns), decimals=decimals)
    return Cell(mean, note=note, mark="worst" if 2 * weakest > len(runs) else "")
