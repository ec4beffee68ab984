"""The episodes of a batch that count: the same ones, however long each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as endless."""


class Played(NamedTuple):
    """Episodes in the order of their numbers.

    Attributes:
        returns: `[episodes, agents]` float64, undiscounted sums of rewards, by agent in the env's order.
        metrics: `[episodes]` float64 by name, what the environment reports of each of them.
        longest: the steps of the longest; 0: not known.
    """

    returns: Tensor
    metrics: dict[str, Tensor]
    longest: int = 0


class CountedEpisodes:
    """The episodes that count: each copy's share of them, and what the agents earn in each.

    What was `played` is complete once no copy is `live`.
    """

    def __init__(self, env: BatchedEnv, episodes: int) -> None:
        self._agents, self._num_envs = env.possible_agents, env.num_envs
        self._share = torch.tensor([len(range(e, episodes, env.num_envs)) for e in range(env.num_envs)])
        self._finished, self._length = torch.zeros_like(self._share), torch.zeros_like(self._share)
        self._running = torch.zeros(env.num_envs, len(self._agents), dtype=torch.float64)
        self._returns = torch.zeros(episodes, len(self._agents), dtype=torch.float64)
        self._metrics: dict[str, Tensor] = {}
        self._longest = 0

    @property
    def played(self) -> Played:
        """All of them, with the metrics that each of them has."""
        complete = {name: values for name, values in self._metrics.items() if not values.isnan().any()}
        return Played(self._returns, complete, self._longest)

    @property
    def live(self) -> Tensor:
        """Copies whose episode counts, `[E]` bool."""
        return self._finished < self._share

    @property
    def episode(self) -> Tensor:
        """The number of each copy's episode, `[E]`; −1 where it does not count."""
        numbers = self._finished * self._num_envs + torch.arange(self._num_envs)
        return torch.where(self.live, numbers, -1)

    def add(self, step: BatchedStep, on_episode: Callable[[int], None] | None) -> None:
        """Count one step; `ValueError`: an episode of more than `LONGEST_EPISODE` steps."""
        self._running += torch.stack([step.rewards[agent] for agent in self._agents], -1)
        self._length += 1
        if self._length.max() > LONGEST_EPISODE:
            raise ValueError(
                f"expected episodes to end, got one of more than {LONGEST_EPISODE} steps; give the "
                "environment a time limit, such as its argument max_cycles"
            )
        numbers = self.episode.tolist()
        for copy in step.episode_over.nonzero().flatten().tolist():
            if numbers[copy] >= 0:
                self._returns[numbers[copy]] = self._running[copy]
                for name, values in step.metrics.items():
                    unknown = torch.full_like(self._returns[:, 0], torch.nan)
                    self._metrics.setdefault(name, unknown)[numbers[copy]] = values[copy]
                self._finished[copy] += 1
                self._longest = max(self._longest, int(self._length[copy]))
                if on_episode is not None:
                    on_episode(int(self._finished.sum()))
            self._running[copy] = 0
            self._length[copy] = 0
