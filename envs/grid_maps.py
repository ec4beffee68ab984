"""Random maps of a grid: obstacles, and starts that are connected with goals, for any number of maps at once.

They have the distribution of `pogema` 1.4.0 (`generator.py`), which shuffles the free cells and pairs them
within each component, the first with the second, the third with the fourth. The first of a pair is a start,
the second its goal, and agents take the pairs in the order of their starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ATTEMPTS = 100
"""How often a map without room for all agents is drawn anew."""


class Maps(NamedTuple):
    """Maps `[..., T]` of C = `size`² cells, which are numbered by rows.

    Attributes:
        free: `[C, T]` bool, cells without obstacle.
        component: `[C, T]` int64, the same number in cells that are connected; 0 in obstacles.
        start: `[A, T]` int64, the cell that each agent begins in.
        goal: `[A, T]` int64, the cell that it is to reach.
    """

    free: Tensor
    component: Tensor
    start: Tensor
    goal: Tensor


def draw_maps(uniform: Callable[[int], Tensor], *, agents: int, size: int, density: float) -> Maps:
    """Draws T maps.

    Args:
        uniform: From the number of the attempt, from 0, to numbers in [0, 1) `[2 C, T]`.
        agents: A.
        size: Height and width.
        density: Probability of an obstacle.

    Raises:
        ValueError: If a map has no room for all agents in any attempt.
    """
    maps, roomy = _attempt(uniform(0), agents=agents, size=size, density=density)
    for attempt in range(1, ATTEMPTS):
        if bool(roomy.all()):
            return maps
        again, more = _attempt(uniform(attempt), agents=agents, size=size, density=density)
        maps = Maps(*(torch.where(roomy, old, new) for old, new in zip(maps, again, strict=True)))
        roomy = roomy | more
    raise ValueError(
        f"expected maps with room for {agents} agents, got none in {ATTEMPTS} attempts with size {size} and "
        f"density {density:g}; take fewer agents, a larger size or a lower density"
    )


def components(free: Tensor) -> Tensor:
    """The component of each cell: the greatest number of a cell in it, from 1; 0 in obstacles.

    Each cell takes the greatest label around it, and then the label of the cell that this one names, until
    nothing changes: paths double with every round.

    Args:
        free: `[H, W, T]` bool.

    Returns:
        `[H · W, T]` int64.
    """
    height, width, _ = free.shape
    open_ = free.long()
    numbers = torch.arange(1, height * width + 1, device=free.device).view(height, width, 1)
    labels = open_ * numbers
    while True:
        around = labels.clone()
        torch.maximum(around[1:], labels[:-1], out=around[1:])
        torch.maximum(around[:-1], labels[1:], out=around[:-1])
        torch.maximum(around[:, 1:], labels[:, :-1], out=around[:, 1:])
        torch.maximum(around[:, :-1], labels[:, 1:], out=around[:, :-1])
        flat = around.mul_(open_).flatten(0, 1)
        # An obstacle names cell 1, and is set back to 0.
        jumped = flat.gather(0, (flat - 1).clamp_min_(0)).view_as(labels).mul_(open_)
        if torch.equal(jumped, labels):
            return labels.flatten(0, 1)
        labels = jumped


def _attempt(numbers: Tensor, *, agents: int, size: int, density: float) -> tuple[Maps, Tensor]:
    """Maps, and which of them `[T]` have room for all agents."""
    cells = size * size
    free = numbers[:cells] >= density
    component = components(free.view(size, size, -1))
    order = numbers[cells:].t()
    # Sorted by component, and within one in random order; rows are maps from here on.
    ranked, cell = (component.t() + order).sort(1)
    label = ranked.long()
    places = torch.arange(cells, device=label.device)
    begins = torch.ones_like(label, dtype=torch.bool)
    begins[:, 1:] = label[:, 1:] != label[:, :-1]
    rank = places - torch.where(begins, places, 0).cummax(1).values
    paired = torch.zeros_like(begins)
    paired[:, :-1] = (label[:, :-1] > 0) & (rank[:, :-1] % 2 == 0) & ~begins[:, 1:]
    wait = order.gather(1, cell).masked_fill_(~paired, torch.inf)
    first = wait.topk(min(agents, cells - 1), 1, largest=False, sorted=True)
    roomy = first.values[:, -1] < torch.inf
    start, goal = cell.gather(1, first.indices), cell.gather(1, (first.indices + 1).clamp_max_(cells - 1))
    return Maps(free, component, start.t(), goal.t()), roomy
