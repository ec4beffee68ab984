"""Episode returns per team, exact over any number of env runners.

RLlib's own ``episode_return_mean`` is a mean of the runners' means over a window of past episodes, and knows
no teams. Sums over the iteration can be added up without loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

RETURNS_KEY = "marl_aajr"
"""Under ``result["env_runners"]``."""


class EpisodeReturns:
    """RLlib's ``on_episode_end``: logs ``episodes``, ``length`` and ``returns/<team>`` as sums.

    Args:
        teams: the team of each agent.
    """

    def __init__(self, teams: Mapping[str, str]) -> None:
        self.teams = dict(teams)

    def __call__(
        self, *, episode: Any, prev_episode_chunks: list[Any], metrics_logger: Any, **_: Any
    ) -> None:
        returns: dict[str, float] = defaultdict(float)
        chunks = [*prev_episode_chunks, episode]
        for agent, team in self.teams.items():
            for chunk in chunks:
                if agent in chunk.agent_episodes:
                    returns[team] += float(chunk.agent_episodes[agent].get_return())
        sums = {"episodes": 1, "length": sum(map(len, chunks)), "returns": dict(returns)}
        metrics_logger.log_dict(sums, key=RETURNS_KEY, reduce="sum")
