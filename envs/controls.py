"""From actions to impulses and messages, as `mpe2` reads them.

Discrete: 0 nothing, 1 left, 2 right, 3 down, 4 up; who moves and speaks chooses `move + 5 · word`, who only
speaks chooses a word. Continuous, clipped to [0, 1]: nothing, left, right, down, up, then the message itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor

from .batch import gather_actions, stack_choices
from .layout import Body, Layout
from .particles import TIME_STEP

_MOVES = 5
_LEFT, _RIGHT, _DOWN, _UP = 1, 2, 3, 4


def action_space(agent: Body, *, message_size: int, continuous: bool) -> spaces.Space[int] | spaces.Box:
    """The actions of an agent."""
    words = message_size if agent.speaks else 0
    if continuous:
        return spaces.Box(0.0, 1.0, (_MOVES * agent.movable + words,))
    return spaces.Discrete((_MOVES if agent.movable else 1) * max(words, 1))


class DiscreteControls:
    """Looks actions up in one table of impulses and messages."""

    def __init__(self, layout: Layout, num_envs: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._names = [agent.name for agent in layout.agents]
        self._num_envs = num_envs
        self._speakers = torch.tensor(layout.speakers, device=device, dtype=torch.int64)
        columns = [_columns(agent, layout.message_size) for agent in layout.agents]
        self._offsets: Tensor | None = None
        if any(not torch.equal(column, columns[0]) for column in columns):
            starts = [sum(c.shape[1] for c in columns[:i]) for i in range(len(columns))]
            self._offsets = torch.tensor(starts, device=device)[:, None]
            table = torch.cat(columns, 1)
        else:
            table = columns[0]
        self._rows = 2 + layout.message_size if layout.speakers else 2
        self._table = table[: self._rows].to(device, dtype).contiguous()

    def __call__(self, actions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Impulses `[2, A, E]` and messages `[message_size, speakers, E]`, if anyone speaks."""
        choice = stack_choices(actions, self._names, self._num_envs)
        if self._offsets is not None:
            choice = choice + self._offsets
        looked_up = self._table.index_select(1, choice.view(-1)).view(self._rows, *choice.shape)
        if self._rows == 2:
            return looked_up, None
        return looked_up[:2], looked_up[2:].index_select(1, self._speakers)


def _columns(agent: Body, message_size: int) -> Tensor:
    """Impulse and message of each action of an agent `[2 + message_size, n]`."""
    moves = torch.zeros(2, _MOVES if agent.movable else 1, dtype=torch.float64)
    if agent.movable:
        strength = agent.acceleration * TIME_STEP
        moves[0, _LEFT], moves[0, _RIGHT] = -strength, strength
        moves[1, _DOWN], moves[1, _UP] = -strength, strength
    if not agent.speaks:
        return torch.cat([moves, torch.zeros(message_size, moves.shape[1], dtype=torch.float64)])
    words = torch.eye(message_size, dtype=torch.float64).repeat_interleave(moves.shape[1], 1)
    return torch.cat([moves.repeat(1, message_size), words])


class ContinuousControls:
    """Reads throttles and messages from the columns of all actions side by side."""

    def __init__(self, layout: Layout, num_envs: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._names = [agent.name for agent in layout.agents]
        widths = [_MOVES * agent.movable + layout.message_size * agent.speaks for agent in layout.agents]
        self._shapes = [(num_envs, width) for width in widths]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        forward, backward, words = [], [], []
        for plus, minus in ((_RIGHT, _LEFT), (_UP, _DOWN)):
            for agent, start in zip(layout.agents, starts, strict=True):
                # Who cannot move reads one column twice: a difference of 0.
                forward.append(start + plus if agent.movable else 0)
                backward.append(start + minus if agent.movable else 0)
        for word in range(layout.message_size):
            words += [starts[i] + _MOVES * layout.agents[i].movable + word for i in layout.speakers]
        self._forward = torch.tensor(forward, device=device)
        self._backward = torch.tensor(backward, device=device)
        self._words = torch.tensor(words, device=device) if words else None
        strengths = [agent.acceleration * TIME_STEP for agent in layout.agents]
        self._strength = torch.tensor(strengths, device=device, dtype=dtype)[:, None]
        self._shape = (2, len(widths), num_envs)
        self._speakers = len(layout.speakers)

    def __call__(self, actions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Impulses `[2, A, E]` and messages `[message_size, speakers, E]`, if anyone speaks."""
        given = torch.cat(gather_actions(actions, self._names, self._shapes), 1).detach()
        columns = given.clamp(0.0, 1.0).t().contiguous()
        throttle = columns.index_select(0, self._forward).sub_(columns.index_select(0, self._backward))
        impulse = throttle.view(self._shape) * self._strength
        if self._words is None:
            return impulse, None
        return impulse, columns.index_select(0, self._words).view(-1, self._speakers, self._shape[2])
