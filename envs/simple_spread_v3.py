"""Agents cover landmarks and keep out of each other's way: `mpe2.simple_spread_v3`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from marl_aajr.core.checks import proportion, whole

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, landmark
from .scenario import PartlyObserved, numbered
from .single_copy import factories

CAPTURE_RADIUS = 0.1
_AGENT = Body("agent", size=0.15, collides=True, color=(0.35, 0.35, 0.85))


@dataclass(frozen=True, kw_only=True)
class SimpleSpread(PartlyObserved):
    """Reward of agent i: (1 − ρ) · −Σ_l min_j d(j, l)  −  ρ · (agents that it touches), ρ = `local_ratio`.

    Attributes:
        N: Number of agents, and of landmarks.
        local_ratio: Weight of the collisions against the common reward, in [0, 1].
        curriculum: Begin without the collision penalty; stage 1 brings it back.
        terminate_on_success: End the episode when every landmark has an agent within 0.1.
    """

    name: ClassVar[str] = "simple_spread_v3"
    stages: ClassVar[int] = 2

    N: int = 3
    local_ratio: float = 0.5
    curriculum: bool = False
    terminate_on_success: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("N", self.N)
        proportion("local_ratio", self.local_ratio)

    @property
    def ends_early(self) -> bool:
        return self.terminate_on_success

    def layout(self) -> Layout:
        return Layout(
            numbered(_AGENT, self.N),
            tuple(landmark(f"landmark {i}") for i in range(self.N)),
            message_size=2,
            extras=self.near_rows(agents=self.N, landmarks=self.N),
        )

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        others = [i for i in range(self.N) if i != agent]
        seen = self.seen_agents(rows, agent, others)
        silence = rows.zeros(2 * seen.shape[1])
        landmarks = self.seen_landmarks(rows, agent, list(range(self.N, 2 * self.N)))
        return {
            "velocity": rows.velocity[:, agent],
            "position": rows.position[:, agent],
            "landmarks": landmarks,
            "others": seen,
            "messages": silence,
        }

    def reward(self, world: World) -> Tensor:
        common = world.distance[:, self.N :].amin(0).sum(0).mul_(self.local_ratio - 1)
        if self.curriculum and world.curriculum_stage == 0:
            return common.expand(self.N, -1)
        return common.sub(self._collisions(world), alpha=self.local_ratio)

    def success(self, world: World) -> Tensor:
        return (world.distance[:, self.N :].amin(0) < CAPTURE_RADIUS).all(0)

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """Reward, collisions, summed distances, covered landmarks."""
        nearest = world.distance[:, self.N :].amin(0)
        total, covered = nearest.sum(0), (nearest < CAPTURE_RADIUS).sum(0)
        return {
            agent.name: (-total - hits, hits, total, covered)
            for agent, hits in zip(world.layout.agents, self._collisions(world), strict=True)
        }

    def _collisions(self, world: World) -> Tensor:
        everyone = slice(0, self.N)
        return world.touching(everyone, everyone).sum(1)


batched_env, parallel_env = factories(SimpleSpread, ParticleBatch)
