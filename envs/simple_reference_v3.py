"""Each agent knows where the other must go: `mpe2.simple_reference_v3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.checks import proportion

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import Scenario, mark, numbered, write_colors
from .single_copy import factories

_COLORS = ((0.75, 0.25, 0.25), (0.25, 0.75, 0.25), (0.25, 0.25, 0.75))
_LANDMARKS, _GOALS = [2, 3, 4], [5, 6]


@dataclass(frozen=True, kw_only=True)
class SimpleReference(Scenario):
    """Reward of agent i: −ρ · d(other, goal_i) − (1 − ρ) · mean_j d(other of j, goal_j).

    Agent i sees the color of goal_i, a landmark at which the other should be, and says one of ten words.

    Attributes:
        local_ratio: ρ, in [0, 1].
    """

    name: ClassVar[str] = "simple_reference_v3"
    choices: ClassVar[tuple[int, ...]] = (3, 3)

    local_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        proportion("local_ratio", self.local_ratio)

    def layout(self) -> Layout:
        return Layout(
            numbered(Body("agent", speaks=True), 2),
            tuple(landmark(f"landmark {i}", color=color) for i, color in enumerate(_COLORS)),
            markers=2,
            message_size=10,
            extras={"goal_colors": (2, 3)},
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        for agent, pick in enumerate(picks):
            mark(fresh, agent, pick)
            write_colors(fresh.extra["goal_colors"][agent], _COLORS, pick)

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        return {
            "velocity": rows.velocity[:, agent],
            "landmarks": rows.relative[:, agent, _LANDMARKS],
            "goal": rows.extra["goal_colors"][agent],
            "messages": rows.message(1 - agent),
        }

    def reward(self, world: World) -> Tensor:
        apart = torch.stack([world.distance[1 - i, goal] for i, goal in enumerate(_GOALS)])
        return apart.mul(-self.local_ratio).sub_(apart.mean(0), alpha=1 - self.local_ratio)


batched_env, parallel_env = factories(SimpleReference, ParticleBatch)
