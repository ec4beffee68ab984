"""The particle world: its bodies, the layout of its state in memory, and its dynamics.

The state of all copies is one tensor of rows `[F, E]`, a row for each number, E copies wide: physics runs
on long contiguous rows, and an observation is a choice of rows, made once and gathered in one operation.

The dynamics are those of `mpe2` (`mpe2/_mpe_utils/core.py`), with time step h = 0.1, damping γ = 0.25, mass
m = 1, contact stiffness c = 100 and contact margin k = 0.001, for agents i and bodies j that collide:

    d_ij = |p_i − p_j| − (size_i + size_j)
    f_i  = a_i u_i + Σ_j c · k log(1 + exp(−d_ij / k)) · (p_i − p_j) / |p_i − p_j|
    p_i ← p_i + h v_i
    v_i ← (1 − γ) v_i + h f_i / m,    then  v_i ← v_i · min(1, limit_i / |v_i|)

Distances and directions that rewards and observations need at the end of a step are those that the forces of
the next step need, so they are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from marl_aajr.rollout.teams import ONE_TEAM

Index = NDArray[np.int64]
Color = tuple[float, float, float]

CONTACT_MARGIN = 0.001

_SOFTPLUS_THRESHOLD = 40.0  # above it log(1 + exp x) is x in both dtypes


@dataclass(frozen=True)
class Body:
    """An agent or a landmark: a disc.

    Attributes:
        name: Unique in its world.
        size: Radius.
        movable: Whether actions and contacts move it.
        collides: Whether it pushes and is pushed by others that collide.
        speaks: Whether it sends a message at every step.
        acceleration: Acceleration at full throttle (`mpe2`'s `accel`).
        max_speed: Speed limit; infinite where there is none.
        team: On whose side it plays.
        color: For drawing: red, green, blue in [0, 1].
    """

    name: str
    size: float = 0.05
    movable: bool = True
    collides: bool = False
    speaks: bool = False
    acceleration: float = 5.0
    max_speed: float = math.inf
    team: str = ONE_TEAM
    color: Color = (0.25, 0.25, 0.25)


def landmark(name: str, *, size: float = 0.05, collides: bool = False, color: Color = (0.25,) * 3) -> Body:
    """A body that never moves."""
    return Body(name, size=size, movable=False, collides=collides, color=color)


@dataclass(frozen=True)
class Physics:
    """The constants of a world, `mpe2`'s by default: m of each agent, γ, h and c."""

    mass: float = 1.0
    damping: float = 0.25
    time_step: float = 0.1
    contact_force: float = 100.0


@dataclass(frozen=True)
class Layout:
    """The bodies of a world and what else a copy remembers.

    Attributes:
        agents: All collide or none does.
        landmarks: Those that collide first.
        markers: Invisible bodies behind the landmarks. A goal is a marker that is put on its landmark when
            an episode begins: then "relative to the goal" is no lookup.
        message_size: Numbers in a message.
        spread: Landmarks begin uniformly in [-spread, spread]².
        extras: Shapes of further rows that a scenario writes, by name.
        physics: Its constants.
    """

    agents: tuple[Body, ...]
    landmarks: tuple[Body, ...]
    markers: int = 0
    message_size: int = 0
    spread: float = 1.0
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    physics: Physics = Physics()

    @property
    def bodies(self) -> tuple[Body, ...]:
        """Agents, then landmarks: the order of `WorldState.position`."""
        return self.agents + self.landmarks

    @property
    def speakers(self) -> tuple[int, ...]:
        """Indices of the agents that speak."""
        return tuple(i for i, agent in enumerate(self.agents) if agent.speaks)

    @property
    def colliders(self) -> int:
        """The number of `bodies` that collide: they come first."""
        return sum(body.collides for body in self.bodies)

    def blocks(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Name, rows and shape of each block, in the order in which they are kept; `relative` is derived."""
        agents, bodies = len(self.agents), len(self.bodies) + self.markers
        shapes = {
            "position": (2, bodies),
            "velocity": (2, agents),
            "message": (self.message_size, len(self.speakers)),
            "zero": (1,),
            **self.extras,
            "relative": (2, agents, bodies),
        }
        start = 0
        for name, shape in shapes.items():
            yield name, slice(start, start + math.prod(shape)), shape
            start += math.prod(shape)

    @property
    def kept(self) -> int:
        """Rows that make up the state; those behind follow from them."""
        return next(rows.start for name, rows, _ in self.blocks() if name == "relative")


class RowIndex:
    """Row numbers in the shapes of the state: what an observation is written in.

    Attributes:
        position: `[2, M]`, agents, then landmarks, then markers.
        velocity: `[2, A]` of agents.
        relative: `[2, A, M]`, where bodies are as agents see them.
        extra: Those of `Layout.extras`.
    """

    def __init__(self, layout: Layout) -> None:
        numbers = {
            name: np.arange(rows.start, rows.stop).reshape(shape) for name, rows, shape in layout.blocks()
        }
        self.position: Index = numbers["position"]
        self.velocity: Index = numbers["velocity"]
        self.relative: Index = numbers["relative"]
        self.extra: dict[str, Index] = {name: numbers[name] for name in layout.extras}
        self._message, self._zero = numbers["message"], numbers["zero"]
        self._speakers = layout.speakers

    def zeros(self, count: int) -> Index:
        """Rows that hold 0."""
        return np.repeat(self._zero, count)

    def message(self, agent: int) -> Index:
        """Rows of an agent's message; rows of zeros if it does not speak."""
        if agent not in self._speakers:
            return self.zeros(len(self._message))
        return self._message[:, self._speakers.index(agent)]


def flat(parts: Sequence[Index]) -> Index:
    """Joins rows of vectors `[2]` or lists of vectors `[2, n]` as x0, y0, x1, y1 and so on."""
    return np.concatenate([np.asarray(part, np.int64).T.ravel() for part in parts])


class WorldState:
    """Named views of the kept rows `[F, E]` of a world.

    Attributes:
        rows: All of them.
        position: `[2, M, E]`.
        velocity: `[2, A, E]`.
        message: `[message_size, speakers, E]`.
        extra: Those of `Layout.extras`, each `[*shape, E]`.
        curriculum_stage: Stage of the curriculum, for scenarios that have one.
    """

    def __init__(self, layout: Layout, rows: Tensor) -> None:
        self.layout = layout
        self.rows = rows
        self.curriculum_stage = 0
        views = {
            name: rows[block].view(*shape, rows.shape[1])
            for name, block, shape in layout.blocks()
            if block.stop <= len(rows)
        }
        self.position = views["position"]
        self.velocity = views["velocity"]
        self.message = views["message"]
        self.extra = {name: views[name] for name in layout.extras}
        self.relative = views.get("relative", rows[:0])


class World(WorldState):
    """E copies of a particle world.

    Args:
        layout: The bodies in it.
        num_envs: E.
        device: Where the tensors live.
        dtype: float32, or float64 for proofs.

    Attributes:
        relative: `[2, A, M, E]`, `position[:, j] - position[:, i]`.
        distance: `[A, M, E]`, its length. An agent's distance to itself is 1 by convention, so that it
            neither touches itself nor divides by 0.
    """

    def __init__(self, layout: Layout, num_envs: int, *, device: torch.device, dtype: torch.dtype) -> None:
        *_, (_, relative, (_, agents, bodies)) = layout.blocks()
        super().__init__(layout, torch.zeros(relative.stop, num_envs, device=device, dtype=dtype))
        self.distance = torch.zeros(agents, bodies, num_envs, device=device, dtype=dtype)
        self._agents = self.position[:, :agents]
        self._to, self._from = self.position[:, None], self._agents[:, :, None]
        self._dx, self._dy = self.relative

        def constant(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype)

        # Added to squared distances: 1 for an agent and itself; for two bodies in one place, the least
        # that keeps 0 / 0 out (mpe2 gives NaN there).
        self._floor = torch.full((agents, bodies, 1), torch.finfo(dtype).tiny, device=device, dtype=dtype)
        self._floor.diagonal(dim1=0, dim2=1).fill_(1.0)
        sizes = constant([body.size for body in layout.bodies] + [0.0] * layout.markers)
        self._contact = (sizes[:agents, None] + sizes[None])[:, :, None]
        self._pairs: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._limit = constant([agent.max_speed for agent in layout.agents])[:, None]
        self._limited = any(math.isfinite(agent.max_speed) for agent in layout.agents)
        # Scales the acceleration and the speed limit of each agent, in worlds that have it.
        self._agility = self.extra.get("agility")
        self._colliders = colliders = layout.colliders
        assert all(body.collides == (i < colliders) for i, body in enumerate(layout.bodies))
        assert not 0 < colliders < len(layout.agents)
        self._near = self.distance[:, :colliders]
        self._toward = self.relative[:, :, :colliders]
        self._reach = self._contact[:, :colliders]
        # Below this gap the force is less than rounding, and exp would make denormals, which are slow.
        self._gap_floor = 1.5 * CONTACT_MARGIN * math.log(torch.finfo(dtype).eps)

    def advance(self, impulse: Tensor) -> None:
        """Moves the agents by one time step; call `relate` afterwards.

        Args:
            impulse: `[2, A, E]`, h · a_i u_i / m: the change of velocity that the actions ask for.
        """
        push = self._push() if self._colliders else None
        if self._agility is not None:
            impulse = impulse * self._agility
        physics = self.layout.physics
        self._agents.add_(self.velocity, alpha=physics.time_step)
        torch.add(impulse, self.velocity, alpha=1 - physics.damping, out=self.velocity)
        if push is not None:
            self.velocity.sub_(push, alpha=physics.contact_force * physics.time_step / physics.mass)
        if self._limited:
            x, y = self.velocity
            speed = (x * x).addcmul_(y, y).sqrt_()
            limit = self._limit if self._agility is None else self._limit * self._agility
            self.velocity.mul_(torch.div(limit, speed).clamp_max_(1.0))

    def relate(self) -> None:
        """Computes `relative` and `distance` from the positions."""
        torch.sub(self._to, self._from, out=self.relative)
        torch.addcmul(self._floor, self._dx, self._dx, out=self.distance)
        self.distance.addcmul_(self._dy, self._dy).sqrt_()

    def touching(self, agents: slice, bodies: slice) -> Tensor:
        """Which agents overlap which bodies `[agents, bodies, E]` bool; never themselves."""
        # Slicing costs as much as comparing, and scenarios ask for the same slices at every step.
        key = (agents.start, agents.stop, bodies.start, bodies.stop)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = (self.distance[agents, bodies], self._contact[agents, bodies])
        return pair[0] < pair[1]

    def _push(self) -> Tensor:
        """Minus the contact forces `[2, A, E]`, divided by c."""
        gap = torch.sub(self._reach, self._near).clamp_min_(self._gap_floor)
        depth = functional.softplus(gap, beta=1 / CONTACT_MARGIN, threshold=_SOFTPLUS_THRESHOLD)
        return (depth.div_(self._near) * self._toward).sum(2)
