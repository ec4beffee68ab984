"""One pushes the other away from its goal: `mpe2.simple_push_v3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import Scenario, mark, two_sides, write_colors
from .single_copy import factories

_ADVERSARY = Body("adversary", collides=True, color=(0.75, 0.25, 0.25))
_AGENT = Body("agent", collides=True)
_AGENT_COLORS = ((0.25, 0.75, 0.25), (0.25, 0.25, 0.75))
_LANDMARK_COLORS = ((0.1, 0.9, 0.1), (0.1, 0.1, 0.9))
_LANDMARKS, _GOAL = [2, 3], 4


@dataclass(frozen=True, kw_only=True)
class SimplePush(Scenario):
    """Paid to the agent: −d(agent, goal). To the adversary: d(agent, goal) − d(adversary, goal)."""

    name: ClassVar[str] = "simple_push_v3"
    choices: ClassVar[tuple[int, ...]] = (2,)

    def layout(self) -> Layout:
        return Layout(
            two_sides(1, 1, adversary=_ADVERSARY, agent=_AGENT),
            tuple(landmark(f"landmark {i}", color=color) for i, color in enumerate(_LANDMARK_COLORS)),
            markers=1,
            message_size=2,
            extras={"color": (3,), "landmark_colors": (6,)},
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        mark(fresh, 0, picks[0])
        write_colors(fresh.extra["color"], _AGENT_COLORS, picks[0])
        both = [value for color in _LANDMARK_COLORS for value in color]
        fresh.extra["landmark_colors"].copy_(fresh.rows.new_tensor(both)[:, None])

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        landmarks = rows.relative[:, agent, _LANDMARKS]
        other = rows.relative[:, agent, 1 - agent]
        if agent == 0:
            return {"velocity": rows.velocity[:, agent], "landmarks": landmarks, "others": other}
        return {
            "velocity": rows.velocity[:, agent],
            "goal": rows.relative[:, agent, _GOAL],
            "color": rows.extra["color"],
            "landmarks": landmarks,
            "landmark_colors": rows.extra["landmark_colors"],
            "others": other,
        }

    def reward(self, world: World) -> Tensor:
        adversary, agent = world.distance[:, _GOAL]
        return torch.stack([agent - adversary, -agent])


batched_env, parallel_env = factories(SimplePush, ParticleBatch)
