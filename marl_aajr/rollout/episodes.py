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
        agent_steps: ``[n, A]`` int64, how often each agent acted.
        copies: ``[n]`` int64, where they were played.
    """

    returns: Tensor
    lengths: Tensor
    agent_steps: Tensor
    copies: Tensor


class EpisodeLog:
    """What the episodes in progress have earned so far, on the CPU.

    Args:
        agents: A, the number of agents.
        num_envs: E.
        phases: Steps of the batch that make one step of the environment.
    """

    def __init__(self, agents: int, num_envs: int, *, phases: int = 1) -> None:
        self._phases = phases
        self._earned = torch.zeros(agents, num_envs, dtype=torch.float64)
        self._acted = torch.zeros(agents, num_envs, dtype=torch.int64)
        self._length = torch.zeros(num_envs, dtype=torch.int64)

    def clear(self) -> None:
        """Forget the episodes in progress."""
        for kept in (self._earned, self._acted, self._length):
            kept.zero_()

    def position(self, over: Tensor, t: int, e: int) -> int:
        """Which step of its episode step ``t`` of those that come next is in copy ``e``, from 1.

        Args:
            over: ``[T, E]`` bool, where episodes end in those steps.
            t: From 0.
            e: Copy.
        """
        ended = over[:t, e].nonzero().flatten().tolist()
        passed = t - ended[-1] if ended else t + 1 + int(self._length[e])
        return -(-passed // self._phases)

    def take(self, rewards: Tensor, acts: Tensor | None, over: Tensor) -> Episodes:
        """Take in T steps.

        Args:
            rewards: ``[T, A, E]``.
            acts: ``[T, A, E]`` bool, who acted; None: everybody.
            over: ``[T, E]`` bool, where episodes ended.

        Returns:
            Those that ended.
        """
        rewards, over = rewards.cpu(), over.cpu()
        acts = None if acts is None else acts.cpu()
        ended = [self._ended(torch.arange(0))]
        start = 0
        for last in over.any(1).nonzero().flatten().tolist():
            self._add(rewards, acts, slice(start, last + 1))
            ended.append(self._ended(over[last].nonzero().flatten()))
            start = last + 1
        self._add(rewards, acts, slice(start, None))
        return Episodes(*(torch.cat(column) for column in zip(*ended, strict=True)))

    def _add(self, rewards: Tensor, acts: Tensor | None, steps: slice) -> None:
        count = len(rewards[steps])
        self._earned += rewards[steps].sum(0, dtype=torch.float64)
        self._acted += count if acts is None else acts[steps].sum(0)
        self._length += count

    def _ended(self, copies: Tensor) -> Episodes:
        lengths = self._length[copies] // self._phases
        episodes = Episodes(self._earned[:, copies].T, lengths, self._acted[:, copies].T, copies)
        for kept in (self._earned, self._acted, self._length):
            kept[..., copies] = 0
        return episodes
