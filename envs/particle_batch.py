"""A scenario, played in E copies of its world."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.streams import Streams

from .batch import TensorBatch
from .controls import ContinuousControls, DiscreteControls, action_space
from .layout import Rows, State
from .particles import World
from .scenario import Scenario


class ParticleBatch(TensorBatch):
    """E copies of a particle environment. See `TensorBatch` for what batches of ours share.

    Args:
        scenario: The environment and its options.
        num_envs: E, at least 1.
        device: Where the tensors live.
        dtype: float32, or float64 for proofs.

    Attributes:
        scenario: As given.
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
        layout = scenario.layout()
        rows = Rows(layout)
        seen = [scenario.observation(rows, i) for i in range(len(layout.agents))]
        names = [agent.name for agent in layout.agents]
        spaces = [
            action_space(agent, message_size=layout.message_size, continuous=scenario.continuous_actions)
            for agent in layout.agents
        ]
        super().__init__(
            num_envs=num_envs,
            observation_sizes={name: len(index) for name, index in zip(names, seen, strict=True)},
            action_spaces=dict(zip(names, spaces, strict=True)),
            teams={agent.name: agent.team for agent in layout.agents},
            max_cycles=scenario.max_cycles,
            ends_early=scenario.ends_early,
            device=device,
            dtype=dtype,
        )
        self.scenario = scenario
        with torch.inference_mode(False):
            self.world = World(layout, num_envs, device=self.device, dtype=dtype)
            blank = torch.zeros(layout.kept, num_envs, device=self.device, dtype=dtype)
        self._fresh = State(layout, blank)
        self._kept = {"rows": self.world.rows[: layout.kept]}
        # Agents in a row who see as much as each other are gathered at once.
        self._seen = [
            ([names[i] for i in run], torch.from_numpy(np.stack([seen[i] for i in run])).to(self.device))
            for run in (list(group) for _, group in groupby(range(len(names)), lambda i: len(seen[i])))
        ]
        controls = ContinuousControls if scenario.continuous_actions else DiscreteControls
        self._controls = controls(layout, num_envs, device=self.device, dtype=dtype)

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
        """See `TensorBatch.get_state`; the stage of the curriculum is part of it."""
        return {**super().get_state(), "curriculum_stage": torch.tensor(self.curriculum_stage)}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TensorBatch.set_state`."""
        super().set_state(state)
        self.set_curriculum_stage(int(state["curriculum_stage"]))

    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (self.scenario, self.num_envs, self.device, self.dtype), self._saved()

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        """A picture of one copy `[height, width, 3]`."""
        from .drawing import draw_particles  # matplotlib is slow to import

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
        self.scenario.begin(
            fresh,
            [
                (number * options).long()
                for number, options in zip(numbers[2 * bodies :], self.scenario.draws, strict=True)
            ],
        )
        return {"rows": fresh.rows}

    def _advance(self, actions: Mapping[str, Tensor]) -> Tensor:
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


def _build(scenario: Scenario, num_envs: int, device: torch.device, dtype: torch.dtype) -> ParticleBatch:
    return ParticleBatch(scenario, num_envs, device=device, dtype=dtype)
