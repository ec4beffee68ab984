"""What agents see in one step, batched: before anybody is lied to, and before anybody acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from marl_aajr.victims import VictimPolicy


@dataclass(frozen=True)
class View:
    """The decisions of agents of one module and one filter, as one batch.

    Attributes:
        rows: by agent who must act, the copies where it must, `[b]`; B = Σ b.
        inputs: what their network receives of what is really there, `[B, d]`.
        policy: theirs, with each row's legal actions.
    """

    rows: dict[str, Tensor]
    inputs: Tensor
    policy: VictimPolicy

    @property
    def agent(self) -> str:
        """One of the agents."""
        return next(iter(self.rows))

    def split(self, values: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Values `[B, ...]` by agent: its name, its copies `[b]`, its values `[b, ...]`."""
        parts = values.split([len(index) for index in self.rows.values()])
        for (agent, index), part in zip(self.rows.items(), parts, strict=True):
            yield agent, index, part


Spy = Callable[[Sequence[View], Tensor], None]
"""Told of every step: the views, and the number of each copy's episode, `[E]`; −1: it does not count."""
