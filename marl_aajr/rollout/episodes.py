"""Returns and lengths of the episodes that end while columns are collected."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """Episodes that ended, in the order of their ends; those of one step in the order of the copies.

    Attributes:
        returns: ``[n, A]`` float64, the sum of each agent's rewards.
        lengths: ``[n]`` int64, in steps of the environment.
        copies: ``[n]`` int64, where they were played.
    """

    returns: Tensor
    lengths: Tensor
    copies: Tensor

    def __len__(self) -> int:
        return len(self.lengths)


class EpisodeLog:
    """What the episodes in progress have earned so far, on the CPU.

    Args:
        agents: A, the number of agents.
        num_envs: E.
    """

    def __init__(self, agents: int, num_envs: int) -> None:
        self._earned = torch.zeros(agents, num_envs, dtype=torch.float64)
        self._length = torch.zeros(num_envs, dtype=torch.int64)

    def clear(self) -> None:
        """Forget the episodes in progress."""
        self._earned.zero_()
        self._length.zero_()

    def take(self, rewards: Tensor, over: Tensor) -> Episodes:
        """Take in ``rewards [T, A, E]`` of steps after some of which, ``over [T, E]``, episodes ended."""
        rewards, over = rewards.cpu(), over.cpu()
        ends = [t + 1 for t in over.any(1).nonzero().flatten().tolist()]
        returns, lengths, copies = [], [], []
        start = 0
        for stop in ends:
            self._add(rewards[start:stop])
            ended = over[stop - 1].nonzero().flatten()
            returns.append(self._earned[:, ended].T)
            lengths.append(self._length[ended])
            copies.append(ended)
            self._earned[:, ended] = 0.0
            self._length[ended] = 0
            start = stop
        self._add(rewards[start:])
        if not ends:
            return Episodes(self._earned.new_empty(0, len(self._earned)), *[self._length.new_empty(0)] * 2)
        return Episodes(torch.cat(returns), torch.cat(lengths), torch.cat(copies))

    def _add(self, rewards: Tensor) -> None:
        self._earned += rewards.sum(0, dtype=torch.float64)
        self._length += len(rewards)
