"""Partial observability: only the nearest others and landmarks are seen, nearest first.

As in `mpe2` (`_mpe_utils/partial_observability.py`): the slots are fixed in number, and those beyond what
exists hold zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checks import whole
from .layout import Index, Rows
from .particles import World
from .scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class PartlyObserved(Scenario):
    """A scenario in which agents may see their neighbours only.

    Attributes:
        num_agent_neighbors: How many other agents are seen; None for all, in their order.
        num_landmark_neighbors: How many landmarks are seen; None for all, in their order.
    """

    num_agent_neighbors: int | None = None
    num_landmark_neighbors: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_agent_neighbors", "num_landmark_neighbors"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))

    def near_rows(self, *, agents: int, landmarks: int) -> dict[str, tuple[int, ...]]:
        """The extra rows that a layout needs for it."""
        rows: dict[str, tuple[int, ...]] = {}
        if self.num_agent_neighbors is not None:
            near = min(self.num_agent_neighbors, agents - 1)
            rows["near_agents"] = rows["near_velocities"] = (2, agents, near)
        if self.num_landmark_neighbors is not None:
            rows["near_landmarks"] = (2, agents, min(self.num_landmark_neighbors, landmarks))
        return rows

    def seen_landmarks(self, rows: Rows, agent: int, landmarks: list[int]) -> Index:
        """Rows of the relative positions of the landmarks that an agent sees `[2, n]`."""
        if self.num_landmark_neighbors is None:
            return rows.relative[:, agent, landmarks]
        return _padded(rows, rows.extra["near_landmarks"][:, agent], self.num_landmark_neighbors)

    def seen_agents(self, rows: Rows, agent: int, others: list[int]) -> Index:
        """Rows of the relative positions of the agents that an agent sees `[2, n]`."""
        if self.num_agent_neighbors is None:
            return rows.relative[:, agent, others]
        return _padded(rows, rows.extra["near_agents"][:, agent], self.num_agent_neighbors)

    def seen_velocities(self, rows: Rows, agent: int, others: list[int]) -> Index:
        """Rows of velocities `[2, n]`: of the given others, or in the slots of `seen_agents`."""
        if self.num_agent_neighbors is None:
            return rows.velocity[:, others]
        return _padded(rows, rows.extra["near_velocities"][:, agent], self.num_agent_neighbors)

    def update(self, world: World) -> None:
        """Finds the nearest; velocities are those of agents that are no adversaries, 0 of others."""
        agents, bodies = len(world.layout.agents), len(world.layout.bodies)
        if "near_landmarks" in world.extra:
            near = world.extra["near_landmarks"]
            order = _nearest(world.distance[:, agents:bodies], near.shape[2])
            near.copy_(world.relative[:, :, agents:bodies].gather(2, order.expand(near.shape)))
        if "near_agents" in world.extra:
            near = world.extra["near_agents"]
            itself = torch.eye(agents, dtype=torch.bool, device=near.device)[:, :, None]
            order = _nearest(world.distance[:, :agents].masked_fill(itself, torch.inf), near.shape[2])
            order = order.expand(near.shape)
            near.copy_(world.relative[:, :, :agents].gather(2, order))
            told = world.velocity * self.tells_velocity(world)
            told = told[:, None].expand(2, agents, agents, -1)
            world.extra["near_velocities"].copy_(told.gather(2, order))

    def tells_velocity(self, world: World) -> Tensor:
        """`[A, 1]`: 1 for agents whose velocity their neighbours see, else 0."""
        return world.rows.new_ones(len(world.layout.agents), 1)


def _nearest(distance: Tensor, number: int) -> Tensor:
    """Indices of the nearest of dimension 1, nearest first `[1, A, number, E]`."""
    return distance.topk(number, dim=1, largest=False, sorted=True).indices[None]


def _padded(rows: Rows, found: Index, slots: int) -> Index:
    return np.concatenate([found, rows.zeros(2 * (slots - found.shape[1])).reshape(2, -1)], 1)
