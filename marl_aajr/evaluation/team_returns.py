"""Returns of teams, with intervals, from the returns of agents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from marl_aajr.evaluation.counted_episodes import Played
from marl_aajr.evaluation.intervals import bootstrap_interval
from marl_aajr.evaluation.outcomes import Metric


@dataclass(frozen=True)
class TeamReturns:
    """Sums over the agents of a team.

    Attributes:
        teams: the team of each agent, in the order of the columns of all returns, `[episodes, agents]`.
        team: the one whose return is "the return".
        seed: of the resampling.
    """

    teams: Mapping[str, str]
    team: str
    seed: int

    def members(self, returns: Tensor, *, team: str | None = None, but: Collection[str] = ()) -> Tensor:
        """The columns of a team's agents, without some; None: of the team itself."""
        chosen = self.team if team is None else team
        columns = [
            i for i, (agent, side) in enumerate(self.teams.items()) if side == chosen and agent not in but
        ]
        return returns[:, columns]

    def each(self, returns: Tensor) -> tuple[float, ...]:
        """The return of each episode."""
        return tuple(self.members(returns).sum(-1).tolist())

    def outcome(self, played: Played) -> dict[str, Any]:
        """The fields of an `Outcome`."""
        own = self.each(played.returns)
        low, high = bootstrap_interval(own, seed=self.seed)
        means = {
            team: self.members(played.returns, team=team).sum(-1).mean().item()
            for team in dict.fromkeys(self.teams.values())
        }
        return {
            "returns": own,
            "mean": sum(own) / len(own),
            "low": low,
            "high": high,
            "team_returns": means,
            "metrics": {name: self._metric(values.tolist()) for name, values in played.metrics.items()},
        }

    def _metric(self, values: list[float]) -> Metric:
        low, high = bootstrap_interval(values, seed=self.seed)
        return Metric(mean=sum(values) / len(values), low=low, high=high, values=tuple(values))
