"""Play with disturbed actions: a batch between agents that decide and an environment that is told otherwise.

What agents learn from is their own decision; that something else was done is part of the environment to them,
as in PR- and NR-MDPs. Random numbers are hashes of seed, copy, episode, step and agent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.seeds import Streams
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper, BatchedStep, check_action
from marl_aajr.rollout.disturbances import Disturbance
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import check_match
from marl_aajr.victims.stepper import Stepper

_SALT = 0xD157B
"""Environments and samplers hash the same seed for numbers of their own."""


def random_actions(space: spaces.Space[Any], mask: Tensor | None, shares: Tensor) -> Tensor:
    """Uniform actions `[E, ...]`, of legal ones by a mask `[E, n]`, from numbers in [0, 1), `[E, ...]`."""
    if isinstance(space, spaces.Box):
        low, high = (torch.from_numpy(bound).to(shares.device) for bound in (space.low, space.high))
        return low + (high - low) * shares.to(low.dtype)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    counts = torch.from_numpy(np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec))
    counts = counts.to(shares.device)
    if mask is None:
        return (shares * counts).long()
    each = zip(shares.view(len(shares), -1).unbind(1), mask.split(counts.view(-1).tolist(), 1), strict=True)
    # The legal action at a share of the row of those of `[E, n]` bool.
    ranks = (((share * legal.sum(1)).long(), legal.cumsum(1)) for share, legal in each)
    chosen = [(upto > rank[:, None]).long().argmax(1) for rank, upto in ranks]
    return torch.stack(chosen, 1).view(shares.shape)


class Chance:
    """Random numbers: in each step one for whether an agent is disturbed, and one for each component."""

    def __init__(
        self, action_spaces: Mapping[str, spaces.Space[Any]], num_envs: int, *, device: torch.device
    ) -> None:
        self._shapes = {agent: tuple(space.shape or ()) for agent, space in action_spaces.items()}
        widths = [1 + math.prod(shape) for shape in self._shapes.values()]
        self._starts = dict(zip(self._shapes, accumulate(widths, initial=0), strict=False))
        self._count = sum(widths)
        self._step = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._streams = Streams(0, num_envs, device=device)

    def reset(self, *, seed: int) -> None:
        """Begin the first episode of every copy."""
        self._step = torch.zeros_like(self._step)
        self._streams = Streams(seed ^ _SALT, len(self._step), device=self._step.device)
        self._streams.begin()

    def advance(self, over: Tensor) -> None:
        """Move on to the next step; to the next episode in the copies `over`, `[E]` bool."""
        self._step = (self._step + 1).masked_fill(over, 0)
        self._streams.begin(over)

    def numbers(self, agent: str) -> tuple[Tensor, Tensor]:
        """This step's number for whether, `[E]`, and those of an action, `[E, ...]`, float64 in [0, 1)."""
        shape = self._shapes[agent]
        place = self._step * self._count + self._starts[agent]
        drawn = self._streams.uniform(1 + math.prod(shape), start=place)
        return drawn[0], drawn[1:].T.reshape(-1, *shape)

    def get_state(self) -> dict[str, Any]:
        """The state of now, for `set_state`."""
        return {"step": self._step, "streams": self._streams.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self._step = state["step"]
        self._streams.set_state(state["streams"])


class ActionAdversary(ABC):
    """Says what is done in the place of agents' actions."""

    @abstractmethod
    def __call__(
        self, env: BatchedEnv, obs: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """ā, or u, `[E, ...]` by disturbed agent, given observations and the agents' own actions."""

    def forget(self, over: Tensor | None = None) -> None:  # noqa: B027  # most remember nothing
        """Forget what was of episodes that are over, `[E]` bool; None: of all."""

    def get_state(self) -> Any:
        """What it remembers, for `set_state`."""
        return None

    def set_state(self, state: Any) -> None:  # noqa: B027  # most remember nothing
        """Go on from where `get_state` was asked."""


class TrainedAdversary(ActionAdversary):
    """Frozen policies, which take their most likely actions; each agent's decides by itself."""

    def __init__(self, victim: Victim, agents: Sequence[str], num_envs: int) -> None:
        self._stepper = Stepper(victim, victim.memory(num_envs), groups=[[agent] for agent in agents])

    def __call__(
        self, env: BatchedEnv, obs: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        return self._stepper.act(self._stepper.see(obs, active=env.active, action_mask=env.action_mask))

    def forget(self, over: Tensor | None = None) -> None:
        self._stepper.memory.forget(over)

    def get_state(self) -> Any:
        return self._stepper.memory.get_state()

    def set_state(self, state: Any) -> None:
        self._stepper.memory.set_state(state)


class DisturbedBatch(BatchedEnvWrapper):
    """E copies of an environment in which actions are disturbed before they are done.

    Args:
        env: the environment.
        disturbance: what happens to actions.
        agents: whose; None: the disturbance's, or all.
        adversary: who acts in their place; None: chance.

    Raises:
        ValueError: an unknown agent, or actions that the disturbance is not defined for.
    """

    def __init__(
        self,
        env: BatchedEnv,
        disturbance: Disturbance,
        *,
        agents: Sequence[str] | None = None,
        adversary: ActionAdversary | None = None,
    ) -> None:
        super().__init__(env)
        self.disturbance, self.adversary = disturbance, adversary
        self.disturbed = disturbed_agents(env, disturbance, agents=agents)
        self._chance = Chance(env.action_spaces, env.num_envs, device=env.device)
        self._obs: Mapping[str, Tensor] = {}

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._chance.reset(seed=seed)
        if self.adversary is not None:
            self.adversary.forget()
        obs = self.env.reset(seed=seed)
        self._obs = obs
        return obs

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        own = {agent: actions[agent] for agent in self.disturbed if agent in actions}
        step = self.env.step({**actions, **self._disturb(own)})
        self._obs = step.obs
        self._chance.advance(step.episode_over)
        if self.adversary is not None:
            self.adversary.forget(step.episode_over)
        return step

    def get_state(self) -> Mapping[str, Any]:
        state = {"env": self.env.get_state(), "chance": self._chance.get_state(), "obs": self._obs}
        return state | {"adversary": None if self.adversary is None else self.adversary.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.env.set_state(state["env"])
        self._chance.set_state(state["chance"])
        self._obs = state["obs"]
        if self.adversary is not None:
            self.adversary.set_state(state["adversary"])

    def _disturb(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for agent, action in own.items():
            check_action(agent, action, self.action_spaces[agent], self.num_envs)
        others = {} if self.adversary is None else self.adversary(self.env, self._obs, own)
        masks, changed = self.env.action_mask, {}
        for agent, action in own.items():
            space, (chance, shares) = self.action_spaces[agent], self._chance.numbers(agent)
            if (other := others.get(agent)) is None:
                noise = not self.disturbance.has_adversary
                other = 2 * shares - 1 if noise else random_actions(space, masks[agent], shares)
            changed[agent] = self.disturbance.applied(space, action, other, chance)
        return changed


def disturbed_agents(
    env: BatchedEnv, disturbance: Disturbance, *, agents: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The agents whose actions are disturbed, in the environment's order; those of `agents` where all may be.

    Raises:
        ValueError: an unknown agent, or actions that the disturbance is not defined for.
    """
    named = disturbance.agents or agents or env.possible_agents
    for agent in named:
        one_of("an agent whose actions are disturbed", agent, env.possible_agents)
        disturbance.check(agent, env.action_spaces[agent])
    return tuple(agent for agent in env.possible_agents if agent in named)


@dataclass(frozen=True)
class DisturbedGame:
    """Builds copies of an environment with disturbed actions; picklable, so that it travels to Ray workers.

    Attributes:
        spec: the environment.
        disturbance: what happens to actions.
        adversary: the trained adversary; None: chance.
    """

    spec: EnvironmentSpec
    disturbance: Disturbance
    adversary: Victim | None = None

    @property
    def name(self) -> str:
        """The name of the environment."""
        return self.spec.name

    def __call__(self, num_envs: int, device: torch.device) -> DisturbedBatch:
        env = make_batch(self.spec, num_envs, device=device)
        return disturbed_batch(env, self.disturbance, self.adversary)


def disturbed_batch(
    env: BatchedEnv,
    disturbance: Disturbance,
    victim: Victim | None = None,
    *,
    agents: Sequence[str] | None = None,
) -> DisturbedBatch:
    """A batch with disturbed actions, by chance or by a trained adversary.

    Raises:
        ValueError: as for `DisturbedBatch`, or an adversary that cannot play these agents.
    """
    chosen = disturbed_agents(env, disturbance, agents=agents)
    if victim is None:
        return DisturbedBatch(env, disturbance, agents=chosen)
    check_match(victim, env, agents=chosen, what="an adversary")
    return DisturbedBatch(
        env, disturbance, agents=chosen, adversary=TrainedAdversary(victim, chosen, env.num_envs)
    )
