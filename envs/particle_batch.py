"""A scenario, played in E copies of its world.

Actions become impulses and messages as `mpe2` reads them. Discrete: 0 nothing, 1 left, 2 right, 3 down,
4 up; who moves and speaks chooses `move + 5 · word`, who only speaks chooses a word. Continuous, clipped to
[0, 1]: nothing, left, right, down, up, then the message itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.channels import in_order
from marl_aajr.core.seeds import Streams

from .particles import Body, Layout, RowIndex, World, WorldState, flat
from .scenario import Scenario
from .single_copy import draw_particles
from .tensor_batch import TensorBatch, unbounded

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

    def __init__(self, layout: Layout, *, device: torch.device, dtype: torch.dtype) -> None:
        self._speakers = torch.tensor(layout.speakers, device=device, dtype=torch.int64)
        columns = [_columns(agent, layout) for agent in layout.agents]
        self._offsets: Tensor | None = None
        table = columns[0]
        if not all(torch.equal(column, table) for column in columns):
            starts = [sum(c.shape[1] for c in columns[:i]) for i in range(len(columns))]
            self._offsets = torch.tensor(starts, device=device)[:, None]
            table = torch.cat(columns, 1)
        self._rows = 2 + layout.message_size if layout.speakers else 2
        self._table = table[: self._rows].to(device, dtype).contiguous()

    def __call__(self, actions: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Impulses `[2, A, E]` and messages `[message_size, speakers, E]`, if anyone speaks."""
        choice = torch.stack(list(actions)).long()
        if self._offsets is not None:
            choice = choice + self._offsets
        looked_up = self._table.index_select(1, choice.view(-1)).view(self._rows, *choice.shape)
        if self._rows == 2:
            return looked_up, None
        return looked_up[:2], looked_up[2:].index_select(1, self._speakers)


def _impulse(agent: Body, layout: Layout) -> float:
    """The change of velocity at full throttle."""
    return agent.acceleration * layout.physics.time_step / layout.physics.mass


def _columns(agent: Body, layout: Layout) -> Tensor:
    """Impulse and message of each action of an agent `[2 + message_size, n]`."""
    message_size = layout.message_size
    moves = torch.zeros(2, _MOVES if agent.movable else 1, dtype=torch.float64)
    if agent.movable:
        strength = _impulse(agent, layout)
        moves[0, _LEFT], moves[0, _RIGHT] = -strength, strength
        moves[1, _DOWN], moves[1, _UP] = -strength, strength
    if not agent.speaks:
        return torch.cat([moves, torch.zeros(message_size, moves.shape[1], dtype=torch.float64)])
    words = torch.eye(message_size, dtype=torch.float64).repeat_interleave(moves.shape[1], 1)
    return torch.cat([moves.repeat(1, message_size), words])


class ContinuousControls:
    """Reads throttles and messages from the columns of all actions side by side."""

    def __init__(self, layout: Layout, *, device: torch.device, dtype: torch.dtype) -> None:
        widths = [_MOVES * agent.movable + layout.message_size * agent.speaks for agent in layout.agents]
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
        strengths = [_impulse(agent, layout) for agent in layout.agents]
        self._strength = torch.tensor(strengths, device=device, dtype=dtype)[:, None]
        self._speakers = len(layout.speakers)

    def __call__(self, actions: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Impulses `[2, A, E]` and messages `[message_size, speakers, E]`, if anyone speaks."""
        columns = torch.cat(list(actions), 1).detach().clamp(0.0, 1.0).t().contiguous()
        throttle = columns.index_select(0, self._forward).sub_(columns.index_select(0, self._backward))
        impulse = throttle.view(2, len(actions), -1) * self._strength
        if self._words is None:
            return impulse, None
        return impulse, columns.index_select(0, self._words).view(-1, self._speakers, columns.shape[1])


class ParticleBatch(TensorBatch):
    """E copies of a particle environment. See `TensorBatch` for what batches of ours share.

    Args:
        scenario: The environment and its options.
        num_envs: E; see `TensorBatch`, as for `device` and `dtype`.

    Attributes:
        world: The state of all copies.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        layout = scenario.physical(scenario.layout())
        rows = RowIndex(layout)
        parts = [scenario.observation(rows, i) for i in range(len(layout.agents))]
        seen = [flat([*each.values()]) for each in parts]
        names = [agent.name for agent in layout.agents]
        spaces = [
            action_space(agent, message_size=layout.message_size, continuous=scenario.continuous_actions)
            for agent in layout.agents
        ]
        super().__init__(
            options=scenario,
            num_envs=num_envs,
            observation_spaces={
                name: unbounded(len(index), dtype) for name, index in zip(names, seen, strict=True)
            },
            action_spaces=dict(zip(names, spaces, strict=True)),
            teams={agent.name: agent.team for agent in layout.agents},
            max_cycles=scenario.max_cycles,
            ends_early=scenario.ends_early,
            device=device,
            dtype=dtype,
        )
        self.scenario = scenario
        chosen = bool(layout.speakers) and not scenario.continuous_actions
        words = {"messages": layout.message_size} if chosen else {}
        sizes = ({channel: rows.size for channel, rows in each.items()} for each in parts)
        self.channels = {name: in_order(own, **words) for name, own in zip(names, sizes, strict=True)}
        with torch.inference_mode(False):
            self.world = World(layout, num_envs, device=self.device, dtype=dtype)
            blank = torch.zeros(layout.kept, num_envs, device=self.device, dtype=dtype)
        self._fresh = WorldState(layout, blank)
        self._kept = {"rows": self.world.rows[: layout.kept]}
        # Agents in a row who see as much as each other are gathered at once.
        self._seen = [
            ([names[i] for i in run], torch.from_numpy(np.stack([seen[i] for i in run])).to(self.device))
            for run in (list(group) for _, group in groupby(range(len(names)), lambda i: len(seen[i])))
        ]
        controls = ContinuousControls if scenario.continuous_actions else DiscreteControls
        self._controls = controls(layout, device=self.device, dtype=dtype)

    @property
    def curriculum_stage(self) -> int:
        """The stage that a scenario with a curriculum is in, from 0."""
        return self.world.curriculum_stage

    def set_curriculum_stage(self, stage: int) -> None:
        """Goes to a stage, or to the nearest that there is."""
        self.world.curriculum_stage = max(0, min(stage, self.scenario.stages - 1))

    def advance_curriculum(self) -> None:
        """Goes to the next stage, if there is one."""
        self.set_curriculum_stage(self.curriculum_stage + 1)

    def get_state(self) -> dict[str, Tensor]:
        return {**super().get_state(), "curriculum_stage": torch.tensor(self.curriculum_stage)}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        super().set_state(state)
        self.set_curriculum_stage(int(state["curriculum_stage"]))

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        return draw_particles(self.world, self.scenario, copy)

    @property
    def _variables(self) -> dict[str, Tensor]:
        return self._kept

    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        fresh, layout = self._fresh, self.world.layout
        agents, bodies = len(layout.agents), len(layout.bodies)
        numbers = streams.uniform(2 * bodies + len(self.scenario.draws))
        places = numbers[: 2 * bodies].view(2, bodies, -1).mul(2).sub_(1)
        fresh.position[:, :agents] = places[:, :agents]
        fresh.position[:, agents:bodies] = places[:, agents:] * layout.spread
        fresh.curriculum_stage = self.world.curriculum_stage
        draws = zip(numbers[2 * bodies :], self.scenario.draws, strict=True)
        self.scenario.begin(fresh, [(number * options).long() for number, options in draws])
        return {"rows": fresh.rows}

    def _advance(self, actions: Sequence[Tensor]) -> Tensor:
        impulse, message = self._controls(actions)
        world = self.world
        world.advance(impulse)
        if message is not None:
            world.message.copy_(message)
        self._derive()
        return self.scenario.reward(world)

    def _derive(self) -> None:
        self.world.relate()
        self.scenario.update(self.world)

    def _observe(self) -> dict[str, Tensor]:
        obs: dict[str, Tensor] = {}
        for names, index in self._seen:
            seen = self.world.rows.index_select(0, index.view(-1)).view(*index.shape, self.num_envs)
            by_agent = seen.transpose(1, 2).contiguous().unbind(0)
            obs.update(zip(names, by_agent, strict=True))
        return obs

    def _success(self) -> Tensor:
        return self.scenario.success(self.world)

    def _tell(self) -> tuple[dict[str, Any], ...]:
        if not self.scenario.benchmark_data:
            return self._infos
        by_copy = {
            agent: list(zip(*(value.movedim(-1, 0).tolist() for value in values), strict=True))
            for agent, values in self.scenario.benchmark(self.world).items()
        }
        return tuple(
            {agent: {"benchmark_data": values[e]} for agent, values in by_copy.items()}
            for e in range(self.num_envs)
        )
