"""One agent goes to a landmark: `mpe2.simple_v3`, for debugging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, landmark
from .scenario import Scenario
from .single_copy import factories


@dataclass(frozen=True, kw_only=True)
class Simple(Scenario):
    """The agent is paid minus its squared distance to the landmark."""

    name: ClassVar[str] = "simple_v3"

    def layout(self) -> Layout:
        return Layout((Body("agent_0"),), (landmark("landmark 0", color=(0.75, 0.25, 0.25)),))

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        return {"velocity": rows.velocity[:, agent], "landmarks": rows.relative[:, agent, 1]}

    def reward(self, world: World) -> Tensor:
        return -world.distance[:, 1].square()


batched_env, parallel_env = factories(Simple, ParticleBatch)
