"""Episode returns per team, exact over any number of env runners.

RLlib's own ``episode_return_mean`` is a mean of the runners' means over a window of past episodes, and knows
no teams. Sums over the iteration can be added up without loss.
"""

from __future__ import annotations

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
        self,
        *,
        episode: Any,
        prev_episode_chunks: list[Any],
        env_runner: Any,
        env_index: int,
        metrics_logger: Any,
        **_: Any,
    ) -> None:
        returns = dict.fromkeys(self.teams.values(), 0.0)
        for agent, earned in env_runner.episode_returns[env_index].items():
            returns[self.teams[agent]] += earned
        length = sum(map(len, [*prev_episode_chunks, episode]))
        sums = {"episodes": 1, "length": length, "returns": returns}
        metrics_logger.log_dict(sums, key=RETURNS_KEY, reduce="sum")
