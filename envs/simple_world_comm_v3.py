"""Pursuers with a leader who speaks, prey with food, forests to hide in: `mpe2.simple_world_comm_v3`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.checks import whole

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, landmark
from .scenario import ADVERSARIES, GOOD, PREY, PURSUER, Scenario, catches, numbered, sides, straying, touches
from .single_copy import factories

_LEADER = replace(PURSUER, name="leadadversary_0", speaks=True, team=ADVERSARIES, color=(0.65, 0.15, 0.15))
_PURSUER = replace(PURSUER, color=(0.95, 0.45, 0.45))
_PREY = replace(PREY, size=0.045, color=(0.45, 0.95, 0.45))


@dataclass(frozen=True, kw_only=True)
class SimpleWorldComm(Scenario):
    """Paid to a pursuer: 5 · (pairs that touch) − 0.1 · d(nearest prey).

    To a prey: −5 · (pursuers at it) − 2 · `straying` + 2 · (food that it touches) − 0.05 · d(nearest food).
    Agents see each other if a forest holds both or none holds either; the leader sees everyone.

    Attributes:
        num_good: Number of prey.
        num_adversaries: Number of pursuers, the leader among them.
        num_obstacles: Number of obstacles.
        num_food: Number of places with food.
        num_forests: Number of forests.
    """

    name: ClassVar[str] = "simple_world_comm_v3"

    num_good: int = 2
    num_adversaries: int = 4
    num_obstacles: int = 1
    num_food: int = 2
    num_forests: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_good", "num_adversaries", "num_food"):
            whole(name, getattr(self, name))
        for name in ("num_obstacles", "num_forests"):
            whole(name, getattr(self, name), least=0)

    @property
    def agents(self) -> int:
        """Number of agents."""
        return self.num_adversaries + self.num_good

    @property
    def food(self) -> slice:
        """Indices of the food."""
        first = self.agents + self.num_obstacles
        return slice(first, first + self.num_food)

    @property
    def forests(self) -> slice:
        """Indices of the forests."""
        return slice(self.food.stop, self.food.stop + self.num_forests)

    def layout(self) -> Layout:
        def several(count: int, like: Body) -> list[Body]:
            return [replace(like, name=f"{like.name} {i}") for i in range(count)]

        pursuers = numbered(_PURSUER, self.num_adversaries - 1, team=ADVERSARIES)
        return Layout(
            (_LEADER, *pursuers, *numbered(_PREY, self.num_good, team=GOOD)),
            (
                *several(self.num_obstacles, landmark("landmark", size=0.2, collides=True)),
                *several(self.num_food, landmark("food", size=0.03, color=(0.15, 0.15, 0.65))),
                *several(self.num_forests, landmark("forest", size=0.3, color=(0.6, 0.9, 0.6))),
            ),
            message_size=4,
            spread=0.9,
            extras={
                "seen_agents": (2, self.agents, self.agents),
                "seen_velocities": (2, self.agents, self.num_good),
                "in_forest": (self.agents, self.num_forests),
            },
        )

    def update(self, world: World) -> None:
        """Updates which agents see each other, and the forests that each agent is in as ±1."""
        _, prey = sides(world)
        inside = world.touching(slice(0, self.agents), self.forests)
        outside = ~inside.any(1)
        visible = (inside[:, None] & inside).any(2) | (outside[:, None] & outside)
        visible[0] = True
        torch.mul(world.relative[:, :, : self.agents], visible, out=world.extra["seen_agents"])
        velocity = world.velocity[:, None, prey]
        torch.mul(velocity, visible[:, prey], out=world.extra["seen_velocities"])
        world.extra["in_forest"].copy_(inside).mul_(2).sub_(1)

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        others = [i for i in range(self.agents) if i != agent]
        prey = [i - self.num_adversaries for i in others if i >= self.num_adversaries]
        landmarks = list(range(self.agents, self.forests.stop))
        seen = {
            "velocity": rows.velocity[:, agent],
            "position": rows.position[:, agent],
            "landmarks": rows.relative[:, agent, landmarks],
            "others": rows.extra["seen_agents"][:, agent, others],
        }
        velocities = {"other_velocities": rows.extra["seen_velocities"][:, agent, prey]}
        forests = {"forests": rows.extra["in_forest"][agent]}
        if agent < self.num_adversaries:
            return {**seen, **velocities, **forests, "messages": rows.message(0)}
        return {**seen, **forests, **velocities}

    def reward(self, world: World) -> Tensor:
        pursuers, prey = sides(world)
        caught = catches(world)
        hunger = world.distance[pursuers, prey].amin(1)
        pursuit = (caught.sum(0) * 5).sub(hunger, alpha=0.1)
        fed = world.touching(prey, self.food).sum(1).sub(straying(world.position[:, prey])).mul_(2)
        fed.sub_(world.distance[prey, self.food].amin(1), alpha=0.05)
        return torch.cat([pursuit, fed.sub_(caught, alpha=5)])

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """The number of prey that a pursuer touches; 0 for prey."""
        return touches(world)


batched_env, parallel_env = factories(SimpleWorldComm, ParticleBatch)
