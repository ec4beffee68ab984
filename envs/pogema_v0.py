"""Agents find their ways through a grid that each of them sees a part of: `pogema` 1.4.0.

A map has `size` × `size` cells, each an obstacle with probability `density`. Every agent has a start and a
goal, connected by free cells. At each step an agent stays (action 0) or moves up, down, left or right
(1 to 4); it stays where an obstacle, the border or another agent is in its way. It sees three windows of
`2 r + 1` × `2 r + 1` cells around itself, `[3, 2 r + 1, 2 r + 1]` with r = `obs_radius`, of zeros and ones:

0. obstacles, the border of the map among them (nothing is beyond it);
1. agents that are on the map, itself among them;
2. its goal, moved to the edge of the window in each axis in which it is farther away.

When an agent reaches its goal (`on_target`):

- `"finish"`: it is paid 1, terminates, and leaves the map; the episode is over when all have left;
- `"nothing"`: it stays and acts on; when all are at their goals at once, all are paid 1 and terminate;
- `"restart"`: it is paid 1 and gets another goal, uniform over the cells that it can reach.

Other rewards are 0. After `max_episode_steps` steps, whoever is left is truncated; as in the package, who
reaches its goal in that step is both, terminated and truncated. Episodes report two metrics (but for
`"restart"`): `success`, 1 if all agents reached their goals (with `"nothing"`: are there in the end), else 0,
and `individual_success`, the share of agents who did; the package calls them CSR and ISR.

If two want what only one can have (`collision_system`):

- `"priority"`: agents move one after the other, so the first in order comes first;
- `"block_both"`: nobody enters a cell that an agent is in, or that two want to enter;
- `"soft"`: agents may follow one another, also in circles, but not exchange their cells; of those who want to
  enter one cell, the first in order does.

From the same map, starts, goals and actions comes what comes in the package, at every step
(`tests/envs/test_against_pogema.py`); maps, starts and goals have its distribution, from other random
numbers. It differs in this: `num_agents` is 4 where the package has 1, as benchmarks in the literature do; a
map without room for all is drawn anew 100 times, not 10; and with `"soft"`, agents see those who follow an
agent of a higher number (in the package's windows they are missing for that step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy as shallow_copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.channels import in_order
from marl_aajr.core.checks import one_of, proportion, whole
from marl_aajr.core.seeds import Streams
from marl_aajr.rollout.batched_env import BatchedStep
from marl_aajr.rollout.teams import ONE_TEAM

from .grid_collisions import COLLISION_SYSTEMS
from .grid_maps import ATTEMPTS, Maps, draw_maps
from .single_copy import blank_page, factories, pixels
from .tensor_batch import TensorBatch, numpy_dtype

_AHEAD = 8  # episodes whose maps are drawn at once: drawing few takes as long as drawing many


@dataclass(frozen=True, kw_only=True)
class Pogema:
    """The options of `pogema_v0`, named as in the package.

    Attributes:
        num_agents: Number of agents.
        size: Height and width of the map in cells.
        density: Probability that a cell is an obstacle.
        obs_radius: r, how many cells an agent sees to each side.
        on_target: `"finish"`, `"nothing"` or `"restart"`.
        collision_system: `"priority"`, `"block_both"` or `"soft"`.
        max_episode_steps: Steps after which an episode is truncated.
        flat: Observations as vectors, as networks with a memory take them (`model.lstm`); not in the package.

    Raises:
        ValueError: If an option is out of its range.
    """

    name: ClassVar[str] = "pogema_v0"

    num_agents: int = 4
    size: int = 8
    density: float = 0.3
    obs_radius: int = 5
    on_target: str = "finish"
    collision_system: str = "priority"
    max_episode_steps: int = 64
    flat: bool = False

    def __post_init__(self) -> None:
        whole("num_agents", self.num_agents)
        whole("size", self.size, least=2)
        whole("obs_radius", self.obs_radius)
        whole("max_episode_steps", self.max_episode_steps)
        proportion("density", self.density)
        one_of("on_target", self.on_target, ("finish", "nothing", "restart"))
        one_of("collision_system", self.collision_system, COLLISION_SYSTEMS)


class PogemaBatch(TensorBatch):
    """E copies of `pogema_v0`. See `TensorBatch` for what batches of ours share.

    Maps are drawn for 8 episodes of each copy at once. On a CUDA device this is the only time that a step is
    waited for.

    Args:
        game: The options.
        num_envs: E; see `TensorBatch`, as for `device` and `dtype`.

    Attributes:
        obstacles: `[size, size, E]`, 1 in obstacles, else 0.
        component: `[C, E]` int64, equal in connected cells, 0 in obstacles; cells are numbered by rows.
        place: `[A, E]` int64, the cell that each agent is in, or where it left.
        goal: `[A, E]` int64, the cell that it is to reach.
        playing: `[A, E]` bool, who is on the map.
    """

    def __init__(
        self,
        game: Pogema,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        agents, size, r = game.num_agents, game.size, game.obs_radius
        names = [f"player_{i}" for i in range(agents)]
        side, wide = 2 * r + 1, size + 2 * r
        self._shape = (3 * side**2,) if game.flat else (3, side, side)
        seen = spaces.Box(-1.0, 1.0, self._shape, numpy_dtype(dtype))
        super().__init__(
            options=game,
            num_envs=num_envs,
            observation_spaces=dict.fromkeys(names, seen),
            action_spaces={name: spaces.Discrete(5) for name in names},
            teams=dict.fromkeys(names, ONE_TEAM),
            max_cycles=game.max_episode_steps,
            ends_early=game.on_target != "restart",
            device=device,
            dtype=dtype,
        )
        planes = in_order(dict.fromkeys(("obstacles", "others", "goal"), side**2))
        self.game, self.channels = game, dict.fromkeys(names, planes)
        with torch.inference_mode(False):
            padded = torch.zeros(num_envs, wide, wide, device=self.device, dtype=dtype)
            padded[:, r - 1 : size + r + 1, r - 1 : size + r + 1] = 1
            self.obstacles = padded[:, r : size + r, r : size + r].permute(1, 2, 0)
            self.place = torch.zeros(agents, num_envs, device=self.device, dtype=torch.int64)
            self.goal, self.component = torch.zeros_like(self.place), self.place.new_zeros(size**2, num_envs)
            self.playing = torch.ones_like(self.place, dtype=torch.bool)
            self._padded = padded.view(-1)
            # Rows of windows lie one behind the other in memory: each is copied in one piece.
            self._rows = padded.as_strided((padded.numel() - side + 1, side), (1, 1))
            self._lines = torch.arange(side, device=self.device) * wide
            self._numbers = torch.arange(num_envs, device=self.device)
            self._corners = self._numbers * wide**2
            self._moves = torch.tensor([[0, -1, 1, 0, 0], [0, 0, 0, -1, 1]], device=self.device)
            self._planes = torch.tensor([1] * agents + [2], device=self.device) * side**2
        self._nobody = self._left = torch.zeros_like(self.playing)
        self._drawn: Maps | None = None

    @property
    def active(self) -> dict[str, Tensor]:
        return self._by_agent(self.playing.clone()) if self.game.on_target == "finish" else super().active

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._drawn = None
        return super().reset(seed=seed)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        if missing := [agent for agent in self.possible_agents if agent not in actions]:
            active, stay = self.active, torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            actions = {**dict.fromkeys([a for a in missing if not bool(active[a].any())], stay), **actions}
        return super().step(actions)

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        self._drawn = None
        super().set_state(state)

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        figure, axes = blank_page()
        axes.imshow(self.obstacles[..., copy].cpu().numpy(), cmap="Greys", vmin=0, vmax=1.5)
        axes.set_axis_off()
        here = self.playing[:, copy].tolist()
        for marker, cells in (("s", self.goal), ("o", self.place)):
            rows, columns = (part[:, copy].tolist() for part in self._coordinates(cells))
            for i in (i for i, on_map in enumerate(here) if on_map):
                filled = f"C{i % 10}" if marker == "o" else "none"
                axes.plot(columns[i], rows[i], marker, ms=240 / self.game.size, mfc=filled, mec=f"C{i % 10}")
        return pixels(figure)

    @property
    def _variables(self) -> dict[str, Tensor]:
        names = ("obstacles", "component", "place", "goal", "playing")
        return {name: getattr(self, name) for name in names}

    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        if self._drawn is None or self._used_up(streams):
            self._drawn = self._draw_ahead(streams)
            self._first, self._uses = streams.episode, 0
        self._uses += 1
        at = (streams.episode - self._first) * self.num_envs + self._numbers
        free, component, start, goal = (part.index_select(1, at) for part in self._drawn)
        obstacles = (~free).to(self.dtype).view(self.obstacles.shape)
        begin = (obstacles, component, start, goal, torch.ones_like(self.playing))
        return dict(zip(self._variables, begin, strict=True))

    def _used_up(self, streams: Streams) -> bool:
        """Whether a copy may need more maps than were drawn; a CUDA device is not asked."""
        if self.device.type == "cpu":
            return bool((streams.episode - self._first >= _AHEAD).any())
        return self._uses == _AHEAD

    def _draw_ahead(self, streams: Streams) -> Maps:
        """Maps of this episode and the next ones `[..., 8 E]`, episode by episode."""
        game, numbers = self.game, 2 * self.game.size**2
        episodes = [shallow_copy(streams) for _ in range(_AHEAD)]
        for later, episode in enumerate(episodes):
            episode.jump(streams.episode + later)

        def uniform(attempt: int) -> Tensor:
            return torch.cat([e.uniform(numbers, start=attempt * numbers) for e in episodes], 1)

        return draw_maps(uniform, agents=game.num_agents, size=game.size, density=game.density)

    def _advance(self, actions: Sequence[Tensor]) -> Tensor:
        size, r, playing = self.game.size, self.game.obs_radius, self.playing
        down, right = self._moves[:, torch.stack(list(actions))]
        row, column = self._coordinates(self.place)
        entered = self._corners + (row + down + r) * (size + 2 * r) + column + right + r
        able = playing & (self._padded.take(entered) == 0)
        aim = torch.where(able, self.place + down * size + right, self.place)
        self.place.copy_(COLLISION_SYSTEMS[self.game.collision_system](self.place, aim, playing))
        arrived = (self.place == self.goal) & playing
        if self.game.on_target == "finish":
            self._left = arrived
            playing.logical_and_(~arrived)
        elif self.game.on_target == "nothing":
            arrived = arrived.all(0).expand_as(arrived)
        else:
            self.goal.copy_(torch.where(arrived, self._other_cells(), self.goal))
        return arrived.to(self.dtype)

    def _other_cells(self) -> Tensor:
        """A cell for each agent `[A, E]`, uniform over those that it can reach, without its own."""
        assert self._streams is not None
        agents, cells = len(self.place), len(self.component)
        start = 2 * cells * ATTEMPTS + self._clock * agents
        own = self.component.gather(0, self.place)
        reach = self.component == own[:, None]
        reach.scatter_(1, self.place[:, None], torch.zeros_like(reach[:, :1]))
        number = (self._streams.uniform(agents, start=start) * reach.sum(1)).long()
        return (reach.cumsum(1) > number[:, None]).to(torch.uint8).argmax(1)

    def _ends(self, late: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.game.on_target == "nothing":
            solved = (self.place == self.goal).all(0)
            return solved, late, solved | late
        left, self._left = self._left, self._nobody
        return left, late & (left | self.playing), late | ~self.playing.any(0)

    def _episode_metrics(self) -> dict[str, Tensor]:
        if self.game.on_target == "restart":
            return {}
        there = ~self.playing if self.game.on_target == "finish" else self.place == self.goal
        return {"success": there.all(0).double(), "individual_success": there.double().mean(0)}

    def _coordinates(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        rows = cells.div(self.game.size, rounding_mode="floor")
        return rows, cells - rows * self.game.size

    def _observe(self) -> dict[str, Tensor]:
        """Also of agents that leave in this step; those that left before see zeros."""
        r, (agents, copies) = self.game.obs_radius, self.place.shape
        side, sees = 2 * r + 1, self.playing | self._left
        row, column = self._coordinates(self.place)
        seen = torch.zeros(agents, copies, 3 * side**2, device=self.device, dtype=self.dtype)
        lines = (self._corners + row * (self.game.size + 2 * r) + column)[..., None] + self._lines
        windows = self._rows.index_select(0, lines.flatten()).view(agents, copies, -1)
        torch.mul(windows, sees[..., None], out=seen[..., : side**2])

        def from_each(own: Tensor, goal: Tensor) -> Tensor:
            """From each agent to all agents and to its goal `[A, E, A + 1]`."""
            everybody = own.t().expand(agents, -1, -1)
            return torch.cat([everybody, goal[..., None]], 2).sub_(own[..., None])

        down, right = map(from_each, (row, column), self._coordinates(self.goal))
        near = torch.maximum(down.abs(), right.abs()) <= r
        near[..., :agents] &= self.playing.t()
        near[..., agents] = True
        at = (down.clamp_(-r, r) + r).mul_(side).add_(right.clamp_(-r, r)).add_(r).add_(self._planes)
        seen.scatter_add_(2, at, (near & sees[..., None]).to(self.dtype))
        by_agent = seen.view(agents, copies, *self._shape).unbind(0)
        return dict(zip(self.possible_agents, by_agent, strict=True))


batched_env, parallel_env = factories(Pogema, PogemaBatch)
