"""Pursuers chase faster prey among obstacles: `mpe2.simple_tag_v3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.checks import whole

from .particle_batch import ParticleBatch
from .particles import Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import PREY, PURSUER, PartlyObserved, catches, sides, straying, touches, two_sides
from .single_copy import factories

SPEED_FACTORS = (0.5, 0.75, 1.0)
"""Speed and acceleration of the prey in the stages of the curriculum."""

_PURSUER = replace(PURSUER, color=(0.85, 0.35, 0.35))
_PREY = replace(PREY, color=(0.35, 0.85, 0.35))


@dataclass(frozen=True, kw_only=True)
class SimpleTag(PartlyObserved):
    """Paid to every pursuer: 10 · (pairs that touch). To a prey: −10 · (pursuers at it) − `straying`.

    Attributes:
        num_good: Number of prey.
        num_adversaries: Number of pursuers.
        num_obstacles: Number of obstacles.
        curriculum: Begin with slow prey; a new stage counts from the next episode.
        terminate_on_success: End the episode when all prey are touched at once.
    """

    name: ClassVar[str] = "simple_tag_v3"
    stages: ClassVar[int] = len(SPEED_FACTORS)

    num_good: int = 1
    num_adversaries: int = 3
    num_obstacles: int = 2
    curriculum: bool = False
    terminate_on_success: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("num_good", self.num_good)
        whole("num_adversaries", self.num_adversaries)
        whole("num_obstacles", self.num_obstacles, least=0)

    @property
    def ends_early(self) -> bool:
        return self.terminate_on_success

    @property
    def agents(self) -> int:
        """Number of agents."""
        return self.num_adversaries + self.num_good

    def layout(self) -> Layout:
        obstacles = [landmark(f"landmark {i}", size=0.2, collides=True) for i in range(self.num_obstacles)]
        extras = self.near_rows(agents=self.agents, landmarks=self.num_obstacles)
        return Layout(
            two_sides(self.num_adversaries, self.num_good, adversary=_PURSUER, agent=_PREY),
            tuple(obstacles),
            message_size=2,
            spread=0.9,
            extras={**extras, **({"agility": (self.agents,)} if self.curriculum else {})},
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        if self.curriculum:
            agility = fresh.extra["agility"].fill_(1.0)
            agility[self.num_adversaries :] = SPEED_FACTORS[fresh.curriculum_stage]

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        others = [i for i in range(self.agents) if i != agent]
        prey = [i for i in others if i >= self.num_adversaries]
        obstacles = list(range(self.agents, self.agents + self.num_obstacles))
        return {
            "velocity": rows.velocity[:, agent],
            "position": rows.position[:, agent],
            "landmarks": self.seen_landmarks(rows, agent, obstacles),
            "others": self.seen_agents(rows, agent, others),
            "other_velocities": self.seen_velocities(rows, agent, prey),
        }

    def tells_velocity(self, world: World) -> Tensor:
        tells = world.rows.new_zeros(self.agents, 1)
        tells[self.num_adversaries :] = 1.0
        return tells

    def reward(self, world: World) -> Tensor:
        caught = catches(world)
        pursuers = (caught.sum(0) * 10).expand(self.num_adversaries, -1)
        _, prey = sides(world)
        return torch.cat([pursuers, -straying(world.position[:, prey]).add_(caught, alpha=10)])

    def success(self, world: World) -> Tensor:
        return (catches(world) > 0).all(0)

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """The number of prey that a pursuer touches; 0 for prey."""
        return touches(world)


batched_env, parallel_env = factories(SimpleTag, ParticleBatch)
