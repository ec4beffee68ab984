"""The memory of attacks that remember: their random numbers in an episode, its steps, what they keep.

Attacks are values, so that whoever plays holds the memory (`Attack.remember`), shows it to the attack with
the rows of a batch (`Attack.with_memory`), and moves it on as the game goes on. Looking changes nothing,
however often it happens; each agent has its own time, its decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from marl_aajr.core.seeds import Streams

_EACH = 16
"""Bits of the places of an agent's random numbers in the stream of an episode."""


class EpisodeMemory:
    """What is remembered of the running episodes of E copies, by agent.

    Args:
        num_envs: E.
        seed: of the random numbers, which follow from it, the copy, the episode and the agent's name.
    """

    def __init__(self, num_envs: int, *, seed: int) -> None:
        self._streams = Streams(seed, num_envs, device=torch.device("cpu"))
        self._streams.begin()
        self._steps: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._next: dict[str, tuple[Tensor, Tensor | None]] = {}

    def at(self, rows: Mapping[str, Tensor]) -> RememberedRows:
        """What is known of the rows of a batch, and a place for what is to be kept of them.

        Args:
            rows: agent -> the copies in which it decides now, `[b]`.
        """
        for agent, copies in rows.items():
            self._next[agent] = copies, None
        return RememberedRows(self, rows)

    def advance(self, agents: Collection[str] | None = None) -> None:
        """The decisions are made that were looked at last; None: by all agents."""
        for agent in [*self._next] if agents is None else [a for a in agents if a in self._next]:
            copies, kept = self._next.pop(agent)
            self._steps[agent] = self.steps(agent).index_add(0, copies, torch.ones_like(copies))
            if kept is not None:
                before = self._kept.get(agent, kept.new_zeros(self.num_envs, *kept.shape[1:]))
                self._kept[agent] = before.index_copy(0, copies, kept)

    def forget(self, over: Tensor) -> None:
        """New episodes begin in the copies that are `over`, `[E]` bool."""
        self._streams.begin(over)
        self._steps = {agent: steps.masked_fill(over, 0) for agent, steps in self._steps.items()}

    def get_state(self) -> dict[str, Any]:
        """The state of now, for `set_state`; later steps do not change it."""
        return {"streams": self._streams.get_state(), "steps": dict(self._steps), "kept": dict(self._kept)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self._streams.set_state(state["streams"])
        self._steps, self._kept, self._next = dict(state["steps"]), dict(state["kept"]), {}

    @property
    def num_envs(self) -> int:
        """E."""
        return len(self._streams.episode)

    def steps(self, agent: str) -> Tensor:
        """An agent's decisions so far in each copy's episode, `[E]`."""
        return self._steps.get(agent, torch.zeros(self.num_envs, dtype=torch.int64))

    def numbers(self, agent: str, count: int) -> Tensor:
        """An agent's random numbers of each copy's episode, `[E, count]` float64 in [0, 1)."""
        return self._streams.uniform(count, start=crc32(agent.encode()) << _EACH).T

    def kept(self, agent: str) -> Tensor | None:
        """What was kept of an agent, `[E, n, d]`; None: nothing yet."""
        return self._kept.get(agent)

    def keep(self, agent: str, copies: Tensor, kept: Tensor) -> None:
        """Keep this once the decisions that were looked at last are made, `[b, n, d]`."""
        self._next[agent] = copies, kept


@dataclass(frozen=True, eq=False)
class RememberedRows:
    """The memory of a batch: agent -> its copies, `[b]`; B = Σ b. Begins with the first observation."""

    memory: EpisodeMemory
    rows: Mapping[str, Tensor]

    @property
    def step(self) -> Tensor:
        """Decisions so far in each row's episode, `[B]`."""
        return torch.cat([self.memory.steps(agent)[copies] for agent, copies in self.rows.items()])

    def numbers(self, count: int) -> Tensor:
        """Random numbers of each row's episode, `[B, count]` float64 in [0, 1)."""
        return torch.cat([self.memory.numbers(agent, count)[copies] for agent, copies in self.rows.items()])

    def kept(self, first: Tensor) -> Tensor:
        """What was kept, `[B, n, d]`; `first` where the episode begins."""
        parts, found = first.split([len(copies) for copies in self.rows.values()]), []
        for (agent, copies), part in zip(self.rows.items(), parts, strict=True):
            before = self.memory.kept(agent)
            begins = (self.memory.steps(agent)[copies] == 0).view(-1, 1, 1)
            found.append(part if before is None else torch.where(begins, part, before[copies]))
        return torch.cat(found)

    def keep(self, values: Tensor) -> None:
        """Keep values `[B, n, d]` of this step for the next."""
        parts = values.split([len(copies) for copies in self.rows.values()])
        for (agent, copies), part in zip(self.rows.items(), parts, strict=True):
            self.memory.keep(agent, copies, part)
