"""Many agents share few resources, and a lie to some about the loads moves them all.

In every round each agent chooses one of M resources. Resource m carries the share x_m of the agents that
chose it and a background load a_m, uniform in [0, `background`], which is drawn for each episode and known
to nobody. Using it costs ℓ_m = (a_m + x_m)^p. All that an agent knows of the loads is its own report of the
last round's,

    r_im(t) = a_m + x_m(t − 1) + noise · u,   u uniform in [−1, 1], for each agent, resource and round;

it sees `[r_i, own last choice as one of M]`. With c_i the cost that agent i bears and ρ =
`local_ratio`, it is paid −ρ c_i − (1 − ρ) · mean_j c_j over the good agents; adversaries, which take up
room like everybody, are paid that mean. Before the first round agents are spread at random.

- **Social optimum**: x minimises the social cost C(x) = Σ_m x_m ℓ_m(x_m), which is convex: the marginal costs
  ℓ_m + x_m ℓ_m' are equal where x_m > 0 and no smaller where x_m = 0.
- **Selfish (Wardrop) equilibrium**: nobody gains by moving; the costs ℓ_m themselves are equal where
  x_m > 0 and no smaller elsewhere, so x_m = (λ − a_m)₊. It minimises
  Σ_m ∫_0^{x_m} ℓ_m (Beckmann et al. 1956).

**How a lie spreads.** Let agents answer reports r of the last loads with the mixed choice π(r), and let
J = ∂π/∂r at the fixed point x* = π(a + x*). A lie δ_t that k of N agents hear in round t moves the shares

    d_t = x_t − x*,     d_t ≈ J d_{t−1} + (k/N) J δ_t.

Nobody else is lied to, but everybody hears of the loads that the lie made. Agents flee load, so J's
eigenvalues are −g ≤ 0, the loop gains of the policy, and the shares swing from side to side:

- one lie moves (k/N) g |δ| at first and 1/(1 − g) times as much in all, the most of it by agents who heard
  the truth;
- a lie that stays the same is answered: |d| → (k/N) g |δ| / (1 + g);
- a lie that swings with the agents is fed: |d| → (k/N) g |δ| / (1 − g). Near g = 1 a few who are lied to
  drive all the others to and fro as one herd, and beyond it the herd needs no lie.

For the logit answer π = softmax(−β ℓ),  J = −β (diag π − π πᵀ) diag(p (a + x)^{p−1}). A policy must answer
to the reports to find room, and what a lie can do is its gain along the lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.channels import in_order
from marl_aajr.core.checks import positive, proportion, whole
from marl_aajr.core.seeds import Streams
from marl_aajr.rollout.teams import ONE_TEAM

from .scenario import ADVERSARIES, GOOD
from .single_copy import blank_page, factories, pixels
from .tensor_batch import TensorBatch, unbounded

_BISECTIONS = 52  # halvings that leave of an interval of length 1 what float64 rounds


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
        positive("power", self.power)
        positive("background", self.background, zero=True)
        positive("noise", self.noise, zero=True)

    @property
    def teams(self) -> dict[str, str]:
        """The team of each agent."""
        saboteurs = {f"adversary_{i}": ADVERSARIES for i in range(self.num_adversaries)}
        good = GOOD if saboteurs else ONE_TEAM
        return {**saboteurs, **{f"agent_{i}": good for i in range(self.num_agents)}}


def costs(share: Tensor, *, background: Tensor, power: float) -> Tensor:
    """ℓ_m = (a_m + x_m)^p `[M, ...]`."""
    load = background + share
    return load if power == 1 else load**power


def social_cost(share: Tensor, *, background: Tensor, power: float) -> Tensor:
    """C = Σ_m x_m ℓ_m(x_m) `[...]`."""
    return (share * costs(share, background=background, power=power)).sum(0)


def equilibrium(*, background: Tensor) -> Tensor:
    """The shares `[M, ...]` from which nobody gains by moving, for any power; float64."""
    return _split(background.double(), lambda share: background.double() + share)


def optimum(*, background: Tensor, power: float) -> Tensor:
    """The shares `[M, ...]` of least social cost; float64."""
    a = background.double()

    def marginal(share: Tensor) -> Tensor:
        load = a + share
        # (a + x)^p + p x (a + x)^(p − 1), written so that it is 0 and not NaN at a = x = 0.
        return load**power * (1 + power * share / load.clamp_min(torch.finfo(a.dtype).tiny))

    return _split(a, marginal)


def _split(like: Tensor, marginal: Callable[[Tensor], Tensor]) -> Tensor:
    """Shares at which the increasing `marginal` is equal where they are positive, and greater elsewhere.

    Bisection for the common level, and within it for the share of each resource at that level.
    """
    none, all_agents = torch.zeros_like(like), torch.ones_like(like)

    def shares(level: Tensor) -> Tensor:
        return _bisect(none, all_agents, lambda x: marginal(x) >= level)

    low, high = marginal(none).amin(0), marginal(all_agents).amax(0)
    found = shares(_bisect(low, high, lambda level: shares(level).sum(0) >= 1))
    return found / found.sum(0)


def _bisect(low: Tensor, high: Tensor, enough: Callable[[Tensor], Tensor]) -> Tensor:
    """The least value that is enough, by element; `high` where none is."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = enough(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


class CongestionBatch(TensorBatch):
    """E copies of `congestion_v0`. See `TensorBatch` for what batches of ours share.

    Args:
        game: The options.
        num_envs: E; see `TensorBatch`, as for `device` and `dtype`.

    Attributes:
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
            options=game,
            num_envs=num_envs,
            observation_spaces=dict.fromkeys(game.teams, unbounded(2 * resources, dtype)),
            action_spaces={agent: spaces.Discrete(resources) for agent in game.teams},
            teams=game.teams,
            max_cycles=game.max_cycles,
            ends_early=False,
            device=device,
            dtype=dtype,
        )
        self.game = game
        seen = in_order({"reports": resources, "choice": resources}, choice=resources)
        self.channels = dict.fromkeys(game.teams, seen)
        agents = len(game.teams)
        with torch.inference_mode(False):
            self.background = torch.zeros(resources, num_envs, device=self.device, dtype=dtype)
            self.share = torch.zeros_like(self.background)
            self.choice = torch.zeros(agents, num_envs, device=self.device, dtype=torch.int64)
            self._resources = torch.arange(resources, device=self.device)[:, None]
        self._begins = resources + agents

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        selfish = equilibrium(background=self.background)
        best = optimum(background=self.background, power=self.game.power)
        splits = {"now": self.share, "equilibrium": selfish, "optimum": best}
        figure, axes = blank_page((0.1, 0.1, 0.85, 0.85))
        width = 0.8 / len(splits)
        for i, (name, shares) in enumerate(splits.items()):
            places = np.arange(self.game.num_resources) + width * i
            axes.bar(places, shares[:, copy].tolist(), width, label=name)
        axes.set(ylim=(0, 1), xlabel="resource", ylabel="share of the agents")
        axes.legend()
        return pixels(figure)

    @property
    def _variables(self) -> dict[str, Tensor]:
        return {"background": self.background, "share": self.share, "choice": self.choice}

    def _initial(self, streams: Streams) -> dict[str, Tensor]:
        resources = self.game.num_resources
        numbers = streams.uniform(self._begins)
        choice = (numbers[resources:] * resources).long()
        background = numbers[:resources] * self.game.background
        return {"background": background, "share": self._count(choice), "choice": choice}

    def _advance(self, actions: Sequence[Tensor]) -> Tensor:
        self.choice.copy_(torch.stack(list(actions)))
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
            assert self._streams is not None
            count = agents * self.game.num_resources
            errors = self._streams.uniform(count, start=self._begins + self._clock * count).to(self.dtype)
            reports = reports + errors.mul_(2 * self.game.noise).sub_(self.game.noise).view(reports.shape)
        place = (self.choice[:, None] == self._resources).to(self.dtype)
        seen = torch.cat([reports, place], 1).transpose(1, 2).contiguous()
        return dict(zip(self.possible_agents, seen.unbind(0), strict=True))


batched_env, parallel_env = factories(Congestion, CongestionBatch)
