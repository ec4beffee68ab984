"""Many agents share few resources, and a lie to some about the loads moves them all.

In every round each agent chooses one of M resources. Resource m carries the share x_m of the agents that
chose it and a background load a_m, uniform in [0, `background`], which is drawn for each episode and known
to nobody. Using it costs ℓ_m = (a_m + x_m)^p. All that an agent knows of the loads is its own report of the
last round's,

    r_im(t) = a_m + x_m(t − 1) + noise · u,   u uniform in [−1, 1], for each agent, resource and round;

it sees `[r_i, own last choice as one of M]`. With c_i the cost that agent i bears and ρ =
`local_ratio`, it is paid −ρ c_i − (1 − ρ) · mean_j c_j over the good agents; adversaries, which take up
room like everybody, are paid that mean. Before the first round agents are spread at random.

To find room an agent must answer to its reports; when all answer at once, they flee from load to load. Who
lies to a few of them in step with that swing drives all. `marl_aajr.envs.congestion_game` has the optimum,
the equilibrium and the mathematics of the swing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.streams import Streams

from .batch import TensorBatch, stack_choices
from .checks import proportion, whole
from .congestion_game import costs, equilibrium, optimum, social_cost
from .factories import declare
from .layout import ONE_TEAM
from .scenario import ADVERSARIES, GOOD
from .view import SingleCopy


@dataclass(frozen=True, kw_only=True)
class Congestion:
    """The options of `congestion_v0`.

    Attributes:
        num_agents: Number of good agents.
        num_adversaries: Number of agents whose gain is the others' cost.
        num_resources: M.
        power: p, how sharply costs grow with the load.
        background: Greatest background load.
        noise: Greatest error of an honest report.
        local_ratio: ρ, weight of an agent's own cost against the mean cost, in [0, 1].
        max_cycles: Rounds of an episode.

    Raises:
        ValueError: If an option is out of its range.
    """

    name: ClassVar[str] = "congestion_v0"

    num_agents: int = 20
    num_adversaries: int = 0
    num_resources: int = 3
    power: float = 1.0
    background: float = 1.0
    noise: float = 0.05
    local_ratio: float = 0.5
    max_cycles: int = 25

    def __post_init__(self) -> None:
        whole("num_agents", self.num_agents)
        whole("num_adversaries", self.num_adversaries, least=0)
        whole("num_resources", self.num_resources, least=2)
        whole("max_cycles", self.max_cycles)
        proportion("local_ratio", self.local_ratio)
        if not self.power > 0:
            raise ValueError(f"expected power above 0, got {self.power!r}")
        for name in ("background", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)!r}")

    @property
    def teams(self) -> dict[str, str]:
        """The team of each agent."""
        saboteurs = {f"adversary_{i}": ADVERSARIES for i in range(self.num_adversaries)}
        good = GOOD if saboteurs else ONE_TEAM
        return {**saboteurs, **{f"agent_{i}": good for i in range(self.num_agents)}}


class CongestionBatch(TensorBatch):
    """E copies of `congestion_v0`. See `TensorBatch` for what batches of ours share.

    Args:
        game: The options.
        num_envs: E, at least 1.
        device: Where the tensors live.
        dtype: float32 or float64.

    Attributes:
        game: As given.
        background: a, `[M, E]`.
        share: x, `[M, E]`, of the last round.
        choice: `[N, E]` int64, where everybody was in the last round; adversaries come first.
    """

    def __init__(
        self,
        game: Congestion,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        resources = game.num_resources
        super().__init__(
            num_envs=num_envs,
            observation_sizes=dict.fromkeys(game.teams, 2 * resources),
            action_spaces={agent: spaces.Discrete(resources) for agent in game.teams},
            teams=game.teams,
            max_cycles=game.max_cycles,
            ends_early=False,
            device=device,
            dtype=dtype,
        )
        self.game = game
        agents = len(game.teams)
        with torch.inference_mode(False):
            self.background = torch.zeros(resources, num_envs, device=self.device, dtype=dtype)
            self.share = torch.zeros_like(self.background)
            self.choice = torch.zeros(agents, num_envs, device=self.device, dtype=torch.int64)
            self._resources = torch.arange(resources, device=self.device)[:, None]
        self._begins = resources + agents

    def social_cost(self) -> Tensor:
        """What all agents paid on average in the last round `[E]`."""
        return social_cost(self.share, background=self.background, power=self.game.power)

    def equilibrium(self) -> Tensor:
        """Shares `[M, E]` of the selfish equilibrium of the current games; float64."""
        return equilibrium(background=self.background)

    def optimum(self) -> Tensor:
        """Shares `[M, E]` of least social cost in the current games; float64."""
        return optimum(background=self.background, power=self.game.power)

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        """A picture of one copy `[height, width, 3]`."""
        from .drawing import draw_shares  # matplotlib is slow to import

        splits = {"now": self.share, "equilibrium": self.equilibrium(), "optimum": self.optimum()}
        return draw_shares({name: values[:, copy].tolist() for name, values in splits.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (self.game, self.num_envs, self.device, self.dtype), self._saved()

    @property
    def _variables(self) -> dict[str, Tensor]:
        return {"background": self.background, "share": self.share, "choice": self.choice}

    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        resources = self.game.num_resources
        numbers = streams.uniform(self._begins)
        choice = (numbers[resources:] * resources).long()
        background = numbers[:resources] * self.game.background
        return {"background": background, "share": self._count(choice), "choice": choice}

    def _advance(self, actions: Mapping[str, Tensor]) -> Tensor:
        self.choice.copy_(stack_choices(actions, self.possible_agents, self.num_envs))
        self.share.copy_(self._count(self.choice))
        game, saboteurs = self.game, self.game.num_adversaries
        price = costs(self.share, background=self.background, power=game.power)
        paid = price.gather(0, self.choice)
        mean = paid[saboteurs:].mean(0)
        rewards = paid.mul_(-game.local_ratio).sub_(mean, alpha=1 - game.local_ratio)
        rewards[:saboteurs] = mean
        return rewards

    def _count(self, choice: Tensor) -> Tensor:
        """The share of each resource `[M, E]`."""
        return (choice[:, None] == self._resources).sum(0).to(self.dtype).div_(len(choice))

    def _observe(self) -> dict[str, Tensor]:
        agents = len(self.choice)
        reports = (self.background + self.share).expand(agents, -1, -1)
        if self.game.noise:
            reports = reports + self._errors(agents * self.game.num_resources).view(reports.shape)
        place = (self.choice[:, None] == self._resources).to(self.dtype)
        seen = torch.cat([reports, place], 1).transpose(1, 2).contiguous()
        return dict(zip(self.possible_agents, seen.unbind(0), strict=True))

    def _errors(self, count: int) -> Tensor:
        """Errors of the current round's reports `[count, E]`."""
        assert self._streams is not None
        numbers = self._streams.uniform(count, start=self._begins + self._clock * count)
        return numbers.to(self.dtype).mul_(2 * self.game.noise).sub_(self.game.noise)


def _build(game: Congestion, num_envs: int, device: torch.device, dtype: torch.dtype) -> CongestionBatch:
    return CongestionBatch(game, num_envs, device=device, dtype=dtype)


def batched_env(
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> CongestionBatch:
    """Builds E copies."""
    return _build(Congestion(**options), num_envs, torch.device(device), dtype)


def parallel_env(*, render_mode: str | None = None, **options: Any) -> SingleCopy:
    """Builds one copy for PettingZoo."""
    return SingleCopy(batched_env(1, **options), name=Congestion.name, render_mode=render_mode)


declare(batched_env, Congestion)
declare(parallel_env, Congestion)
