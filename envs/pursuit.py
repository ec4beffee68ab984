"""What tag and its sequel with words and forests share: prey, pursuers and the edge of the arena."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Body
from .particles import World
from .scenario import ADVERSARIES

PURSUER = Body("adversary", size=0.075, collides=True, acceleration=3.0, max_speed=1.0)
PREY = Body("agent", size=0.05, collides=True, acceleration=4.0, max_speed=1.3)


def sides(world: World) -> tuple[slice, slice]:
    """Indices of pursuers and of prey."""
    pursuers = sum(agent.team == ADVERSARIES for agent in world.layout.agents)
    return slice(0, pursuers), slice(pursuers, len(world.layout.agents))


def catches(world: World) -> Tensor:
    """`[prey, E]`: how many pursuers touch each prey."""
    pursuers, prey = sides(world)
    return world.touching(pursuers, prey).sum(0)


def touches(world: World) -> dict[str, tuple[Tensor, ...]]:
    """How many prey each pursuer touches `[E]`; 0 for prey."""
    pursuers, prey = sides(world)
    counts = world.touching(pursuers, prey).sum(1)
    none = torch.zeros_like(counts[0])
    names = [agent.name for agent in world.layout.agents]
    told = [*counts, *[none] * (prey.stop - prey.start)]
    return {name: (value,) for name, value in zip(names, told, strict=True)}


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
