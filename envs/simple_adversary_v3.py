"""Good agents know the goal and must not show it to the adversary: `mpe2.simple_adversary_v3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.checks import whole

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import PartlyObserved, mark, two_sides
from .single_copy import factories

_ADVERSARY = Body("adversary", size=0.15, color=(0.85, 0.35, 0.35))
_AGENT = Body("agent", size=0.15, color=(0.35, 0.35, 0.85))


@dataclass(frozen=True, kw_only=True)
class SimpleAdversary(PartlyObserved):
    """Paid to the adversary: −d(adversary, goal). To the others: d(adversary, goal) − min_i d(i, goal).

    Attributes:
        N: Number of good agents, and of landmarks. Agents see the goal, the adversary does not.
    """

    name: ClassVar[str] = "simple_adversary_v3"

    N: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("N", self.N)

    @property
    def draws(self) -> tuple[int, ...]:
        return (self.N,)

    @property
    def goal(self) -> int:
        """Index of the marker."""
        return 2 * self.N + 1

    def layout(self) -> Layout:
        return Layout(
            two_sides(1, self.N, adversary=_ADVERSARY, agent=_AGENT),
            tuple(landmark(f"landmark {i}", size=0.08, color=(0.15,) * 3) for i in range(self.N)),
            markers=1,
            message_size=2,
            extras=self.near_rows(agents=self.N + 1, landmarks=self.N),
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        mark(fresh, 0, picks[0])

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        others = [i for i in range(self.N + 1) if i != agent]
        seen = {
            "landmarks": self.seen_landmarks(rows, agent, list(range(self.N + 1, self.goal))),
            "others": self.seen_agents(rows, agent, others),
        }
        return seen if agent == 0 else {"goal": rows.relative[:, agent, self.goal], **seen}

    def reward(self, world: World) -> Tensor:
        to_goal = world.distance[:, self.goal]
        good = to_goal[0] - to_goal[1:].amin(0)
        return torch.stack([-to_goal[0], *[good] * self.N])

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """Squared distances: of the adversary to the goal, of the others to landmarks and goal."""
        squared = world.distance[:, self.N + 1 :].square()
        adversary, *good = world.layout.agents
        told = {agent.name: tuple(squared[i + 1]) for i, agent in enumerate(good)}
        return {adversary.name: (squared[0, -1],), **told}


batched_env, parallel_env = factories(SimpleAdversary, ParticleBatch)
