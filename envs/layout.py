"""Who is in a particle world, and where each number of its state is kept.

The state of all copies is one tensor of rows `[F, E]`, a row for each number, E copies wide: physics runs
on long contiguous rows, and an observation is a choice of rows, made once and gathered in one operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]
Color = tuple[float, float, float]

ONE_TEAM = "team"


@dataclass(frozen=True)
class Body:
    """An agent or a landmark: a disc of mass 1.

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
    """

    agents: tuple[Body, ...]
    landmarks: tuple[Body, ...]
    markers: int = 0
    message_size: int = 0
    spread: float = 1.0
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def bodies(self) -> tuple[Body, ...]:
        """Agents, then landmarks: the order of `State.position`."""
        return self.agents + self.landmarks

    @property
    def speakers(self) -> tuple[int, ...]:
        """Indices of the agents that speak."""
        return tuple(i for i, agent in enumerate(self.agents) if agent.speaks)

    @property
    def colliders(self) -> int:
        """How many of `bodies` collide: the first so many, or none."""
        return sum(body.collides for body in self.bodies)

    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the blocks of rows, in the order in which they are kept; `relative` is derived."""
        agents, bodies = len(self.agents), len(self.bodies) + self.markers
        return {
            "position": (2, bodies),
            "velocity": (2, agents),
            "message": (self.message_size, len(self.speakers)),
            "zero": (1,),
            **self.extras,
            "relative": (2, agents, bodies),
        }

    def places(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Name, first row and shape of each block."""
        start = 0
        for name, shape in self.blocks().items():
            yield name, start, shape
            start += math.prod(shape)

    @property
    def kept(self) -> int:
        """Rows that make up the state; those behind follow from them."""
        return next(start for name, start, _ in self.places() if name == "relative")


class Rows:
    """Row numbers in the shapes of the state: what an observation is written in.

    Attributes:
        position: `[2, M]`, agents, then landmarks, then markers.
        velocity: `[2, A]` of agents.
        relative: `[2, A, M]`, where bodies are as agents see them.
        extra: Those of `Layout.extras`.
    """

    def __init__(self, layout: Layout) -> None:
        numbers = {
            name: np.arange(start, start + math.prod(shape)).reshape(shape)
            for name, start, shape in layout.places()
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
        """What an agent says; zeros if it does not speak."""
        if agent not in self._speakers:
            return self.zeros(len(self._message))
        return self._message[:, self._speakers.index(agent)]


def flat(parts: Sequence[Index]) -> Index:
    """Joins rows of vectors `[2]` or lists of vectors `[2, n]` as x0, y0, x1, y1 and so on."""
    return np.concatenate([np.asarray(part, np.int64).T.ravel() for part in parts])


class State:
    """Named views of the kept rows `[F, E]` of a world.

    Attributes:
        rows: All of them.
        position: `[2, M, E]`.
        velocity: `[2, A, E]`.
        message: `[message_size, speakers, E]`.
        extra: Those of `Layout.extras`, each `[*shape, E]`.
        curriculum_stage: What a scenario with a curriculum reads.
    """

    def __init__(self, layout: Layout, rows: Tensor) -> None:
        self.layout = layout
        self.rows = rows
        self.curriculum_stage = 0
        views = {
            name: rows[start : start + math.prod(shape)].view(*shape, rows.shape[1])
            for name, start, shape in layout.places()
            if start + math.prod(shape) <= len(rows)
        }
        self.position = views["position"]
        self.velocity = views["velocity"]
        self.message = views["message"]
        self.extra = {name: views[name] for name in layout.extras}
        self.relative = views.get("relative", rows[:0])
