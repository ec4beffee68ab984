"""The part of a particle environment that is its own: bodies, observations and rewards.

`Scenario` is the whole of it; `PartlyObserved` shows agents only the nearest others and landmarks, as in
`mpe2` (`_mpe_utils/partial_observability.py`); the functions at the end are what tag and its sequel with
words and forests share: prey, pursuers and the edge of the arena.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from marl_aajr.core.checks import positive, proportion, whole

from .particles import Body, Index, Layout, Physics, RowIndex, World, WorldState

ADVERSARIES, GOOD = "adversary", "good"
PURSUER = Body("adversary", size=0.075, collides=True, acceleration=3.0, max_speed=1.0)
PREY = Body("agent", size=0.05, collides=True, acceleration=4.0, max_speed=1.3)


@dataclass(frozen=True, kw_only=True)
class Scenario(ABC):
    """A particle environment and its options.

    Attributes:
        max_cycles: Steps after which an episode is truncated.
        continuous_actions: Throttles and messages in [0, 1] in place of a choice.
        dynamic_rescaling: Draw discs in the scale of the picture, not at a fixed size.
        benchmark_data: Report the quantities of the original benchmark in `infos`, by agent as
            `{"benchmark_data": tuple}`. One dict for each copy: slow for many.
        mass: Mass of every agent, > 0; this and the following are constants of `mpe2`.
        damping: Share of its velocity that an agent loses in a step, in [0, 1].
        sensitivity: Acceleration of every agent at full throttle and mass 1, ≥ 0; None: each its own.
        size: Radius of every agent, > 0; None: each its own.
        time_step: Length of a step, > 0.
        contact_force: Stiffness of contacts, ≥ 0.

    Raises:
        ValueError: If an option is out of its range.
    """

    name: ClassVar[str]
    choices: ClassVar[tuple[int, ...]] = ()
    """Numbers of alternatives of the random choices that begin an episode."""
    stages: ClassVar[int] = 1
    """The number of stages of the curriculum."""

    max_cycles: int = 25
    continuous_actions: bool = False
    dynamic_rescaling: bool = True
    benchmark_data: bool = False
    mass: float = Physics.mass
    damping: float = Physics.damping
    sensitivity: float | None = None
    size: float | None = None
    time_step: float = Physics.time_step
    contact_force: float = Physics.contact_force

    def __post_init__(self) -> None:
        whole("max_cycles", self.max_cycles)
        proportion("damping", self.damping)
        for name in ("mass", "sensitivity", "size", "time_step", "contact_force"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), zero=name in ("sensitivity", "contact_force"))

    @abstractmethod
    def layout(self) -> Layout:
        """The bodies in the world."""

    def physical(self, layout: Layout) -> Layout:
        """A layout with the physical options."""
        own = {"acceleration": self.sensitivity, "size": self.size}
        given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        physics = Physics(**{name: getattr(self, name) for name in vars(layout.physics)})
        agents = tuple(replace(agent, **given) for agent in layout.agents)
        return replace(layout, agents=agents, physics=physics)

    @abstractmethod
    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        """Which rows an agent sees, in order, by channel: numbers `[n]` or vectors `[2, n]`."""

    @abstractmethod
    def reward(self, world: World) -> Tensor:
        """Rewards `[A, E]` after a step."""

    @property
    def draws(self) -> tuple[int, ...]:
        """As `choices`, where the options matter."""
        return self.choices

    @property
    def ends_early(self) -> bool:
        """Whether success ends an episode."""
        return False

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        """Completes the initial states, in which the bodies have places and nothing else is set.

        Args:
            fresh: The initial states.
            picks: `[E]` int64 for each of `draws`, uniform in [0, n).
        """
        return

    def update(self, world: World) -> None:
        """Writes the extra rows that change with every step."""
        return

    def success(self, world: World) -> Tensor:
        """`[E]` bool: episodes that reached their goal; asked if `ends_early`."""
        raise NotImplementedError

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """By agent, tensors `[..., E]`: what the original benchmark reports."""
        return {}


def two_sides(adversaries: int, good: int, *, adversary: Body, agent: Body) -> tuple[Body, ...]:
    """`adversary_0` and so on, then `agent_0` and so on, made like the two given ones."""
    return numbered(adversary, adversaries, team=ADVERSARIES) + numbered(agent, good, team=GOOD)


def numbered(like: Body, count: int, *, team: str | None = None) -> tuple[Body, ...]:
    """`count` bodies like the given one, `name_0`, `name_1` and so on."""
    return tuple(replace(like, name=f"{like.name}_{i}", team=team or like.team) for i in range(count))


def mark(fresh: WorldState, marker: int, pick: Tensor) -> None:
    """Puts a marker on the picked landmark `[E]` of each copy."""
    layout = fresh.layout
    agents, bodies = len(layout.agents), len(layout.bodies)
    places = fresh.position[:, agents:bodies]
    fresh.position[:, bodies + marker] = places.gather(1, pick.expand(2, 1, -1))[:, 0]


def write_colors(target: Tensor, colors: Sequence[Sequence[float]], pick: Tensor) -> None:
    """Writes the picked color (or code) of each copy into rows `[n, E]`."""
    table = target.new_tensor([list(color) for color in colors]).t()
    target.copy_(table.index_select(1, pick))


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

    def seen_landmarks(self, rows: RowIndex, agent: int, landmarks: list[int]) -> Index:
        """Rows of the relative positions of the landmarks that an agent sees `[2, n]`."""
        every, slots = rows.relative[:, agent, landmarks], self.num_landmark_neighbors
        return every if slots is None else _padded(rows, "near_landmarks", agent, slots)

    def seen_agents(self, rows: RowIndex, agent: int, others: list[int]) -> Index:
        """Rows of the relative positions of the agents that an agent sees `[2, n]`."""
        every, slots = rows.relative[:, agent, others], self.num_agent_neighbors
        return every if slots is None else _padded(rows, "near_agents", agent, slots)

    def seen_velocities(self, rows: RowIndex, agent: int, others: list[int]) -> Index:
        """Rows of velocities `[2, n]`: of the given others, or in the slots of `seen_agents`."""
        every, slots = rows.velocity[:, others], self.num_agent_neighbors
        return every if slots is None else _padded(rows, "near_velocities", agent, slots)

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


def _padded(rows: RowIndex, name: str, agent: int, slots: int) -> Index:
    found = rows.extra[name][:, agent]
    return np.concatenate([found, rows.zeros(2 * (slots - found.shape[1])).reshape(2, -1)], 1)


def sides(world: World) -> tuple[slice, slice]:
    """Indices of pursuers and of prey."""
    pursuers = sum(agent.team == ADVERSARIES for agent in world.layout.agents)
    return slice(0, pursuers), slice(pursuers, len(world.layout.agents))


def catches(world: World) -> Tensor:
    """`[prey, E]`: how many pursuers touch each prey."""
    pursuers, prey = sides(world)
    return world.touching(pursuers, prey).sum(0)


def touches(world: World) -> dict[str, tuple[Tensor, ...]]:
    """The number of prey that each pursuer touches `[E]`; 0 for prey."""
    counts = world.touching(*sides(world)).sum(1)
    told = chain(counts, repeat(torch.zeros_like(counts[0])))
    return {agent.name: (count,) for agent, count in zip(world.layout.agents, told, strict=False)}


def straying(position: Tensor) -> Tensor:
    """The penalty for leaving the arena, summed over the axes.

    Per axis, for x = |position|: 0 below 0.9; 10 (x − 0.9) below 1; min(exp(2x − 2), 10) beyond.

    Args:
        position: `[2, n, E]`.

    Returns:
        `[n, E]`.
    """
    x = position.abs()
    edge = (x - 0.9).mul_(10).clamp_min_(0)
    beyond = (2 * x - 2).exp_().clamp_max_(10)
    return torch.where(x < 1, edge, beyond).sum(0)
