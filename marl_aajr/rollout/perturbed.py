"""A game of two sides: the agents of an environment, and adversaries that choose what they see.

One step of the environment is two steps of the batch, in all copies at once:

    first   each adversary sees its agent's true observation s and acts, from which follows δ
    second  each agent sees s + δ and acts, the environment steps, and both sides are told what they earn

What a team earns, its adversaries lose, in equal parts and to the last step: an adversary ends when the
episode does, also where its agent was out before, as truncated if its agent was cut off in that very step. To
whoever samples, this is a turn-based game like any other: neither side is shown, paid or trained for the
turns of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.adversary_actions import AdversaryActions, Kind, adversary_actions
from marl_aajr.core.channels import Channels, held
from marl_aajr.core.checks import one_of
from marl_aajr.core.policy import Policy, where_rows
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper, BatchedStep, check_action
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch

ADVERSARY = "adversary"
"""The name of the adversary of several agents, and of the team that plays against frozen victims."""


def adversary_of(name: str) -> str:
    """The name of an agent's adversary, and of the adversaries' module or team for the agents' own."""
    return f"adversary_of_{name}"


def loss(rewards: Mapping[str, Tensor], team: Sequence[str], *, adversaries: int) -> Tensor:
    """The reward of each of a team's adversaries, `[E]`: minus what the team earns, in equal parts."""
    return -torch.stack([rewards[agent] for agent in team]).sum(0) / adversaries


@dataclass(frozen=True)
class Perturb:
    """The change that the adversaries' actions make to the agents' observations.

    Attributes:
        actions: Meaning of the actions.
        perturbations: Δ, in units of the environment's observations.
        policies: The agents' present policies, from the environment's observations `[E, d]`; of `pa-ad` only.
        channels: What the agents observe, where Δ is held to channels.
    """

    actions: AdversaryActions
    perturbations: PerturbationSet
    policies: Mapping[str, Policy] = field(default_factory=dict)
    channels: Mapping[str, Channels] = field(default_factory=dict)

    def __call__(self, agent: str, obs: Tensor, actions: Tensor) -> Tensor:
        """δ of an agent, given its true observations `[E, d]` and its adversary's actions `[E, ...]`."""
        own = held(self.perturbations, self.channels.get(agent, {}), obs.shape[-1])
        assert own is not None
        return self.actions.perturb(self.policies.get(agent), obs, actions, own)


class PerturbedBatch(BatchedEnvWrapper):
    """E copies of an environment together with the adversaries of its agents; see the module's documentation.

    What an agent sees last in an episode is the truth, because no adversary acts on it. Where bounds of the
    observation space are no bounds of the set, perturbed observations may lie outside.

    Args:
        env: The environment.
        agents: The attacked agents, whose observations are perturbed; None: all.
        kind: Of the adversaries.

    Attributes:
        env: The environment.
        perturb: Change of observations by the adversaries' actions; None: no change. To be set before
            playing, and again whenever it changes.
        attacked: The attacked agents.

    Raises:
        ValueError: An unknown agent, or one whose observations are not floating-point numbers.
    """

    def __init__(self, env: BatchedEnv, *, agents: Sequence[str] | None = None, kind: Kind = "sa-rl") -> None:
        super().__init__(env)
        self.turn_based, self.phases = True, 2
        self.perturb: Perturb | None = None
        self.attacked = attacked_agents(env.observation_spaces, agents)
        self.may_idle = self.attacked != env.possible_agents or env.may_idle
        own, attacked, meaning = env.observation_spaces, self.attacked, adversary_actions(kind)
        self.possible_agents = (*env.possible_agents, *map(adversary_of, attacked))
        self.observation_spaces = own | {adversary_of(a): own[a] for a in attacked}
        self.action_spaces = env.action_spaces | {
            adversary_of(a): meaning.space(own[a], env.action_spaces[a]) for a in attacked
        }
        self.teams = env.teams | {adversary_of(a): adversary_of(env.teams[a]) for a in attacked}
        self._true: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] | None = None

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        obs = self.env.reset(seed=seed)
        self._last = {agent: torch.zeros_like(obs[agent]) for agent in self.attacked}
        return self._to_adversaries(obs)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        return self._perturb(actions) if self._seen is None else self._play(actions)

    @property
    def active(self) -> dict[str, Tensor]:
        active = self.env.active
        nobody = {agent: torch.zeros_like(who) for agent, who in active.items()}
        agents, adversaries = (nobody, active) if self._seen is None else (active, nobody)
        return agents | {adversary_of(agent): adversaries[agent] for agent in self.attacked}

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        masks = self.env.action_mask
        if self._seen is None:
            masks = {agent: None if mask is None else torch.ones_like(mask) for agent, mask in masks.items()}
        return masks | dict.fromkeys(map(adversary_of, self.attacked))

    def get_state(self) -> Mapping[str, Any]:
        """The state of the environment and of the step; the set `perturb` is no part of it."""
        return {"env": self.env.get_state(), "true": self._true, "seen": self._seen, "last": self._last}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.env.set_state(state["env"])
        self._true, self._seen, self._last = state["true"], state["seen"], state["last"]

    def _perturb(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        active = self.env.active
        self._seen = self._true | {a: self._perturbed(a, actions, active[a]) for a in self.attacked}
        nobody = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        obs = self._seen | {adversary_of(a): torch.zeros_like(self._true[a]) for a in self.attacked}
        return BatchedStep(
            obs=obs,
            rewards=dict.fromkeys(self.possible_agents, nobody.float()),
            terminations=dict.fromkeys(self.possible_agents, nobody),
            truncations=dict.fromkeys(self.possible_agents, nobody),
            episode_over=nobody,
            final_obs=obs,
            infos=({},) * self.num_envs,
        )

    def _play(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        step = self.env.step({a: actions[a] for a in self.env.possible_agents if a in actions})
        pairs, over = {agent: adversary_of(agent) for agent in self.attacked}, step.episode_over
        cut = {agent: over & step.truncations[agent] & ~step.terminations[agent] for agent in pairs}
        out = {agent: step.terminations[agent] | step.truncations[agent] for agent in pairs}
        self._last = {a: where_rows(out[a], step.final_obs[a], self._last[a]) for a in pairs}
        return step._replace(
            obs=self._to_adversaries(step.obs),
            rewards=step.rewards | {name: self._paid(agent, step) for agent, name in pairs.items()},
            terminations=step.terminations | {name: over & ~cut[agent] for agent, name in pairs.items()},
            truncations=step.truncations | {name: cut[agent] for agent, name in pairs.items()},
            final_obs=step.final_obs | {name: self._last[agent] for agent, name in pairs.items()},
        )

    def _to_adversaries(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """True observations, on which the adversaries must act now."""
        self._true, self._seen = obs, None
        agents = {agent: torch.zeros_like(seen) for agent, seen in obs.items()}
        return agents | {adversary_of(agent): obs[agent] for agent in self.attacked}

    def _perturbed(self, agent: str, actions: Mapping[str, Tensor], active: Tensor) -> Tensor:
        true, name = self._true[agent], adversary_of(agent)
        action = actions.get(name)
        if action is not None:
            check_action(name, action, self.action_spaces[name], self.num_envs)
        elif bool(active.any()):
            raise ValueError(f"expected actions of {name!r}, which is active; add them")
        if self.perturb is None or action is None:
            return true
        delta = self.perturb(agent, true.flatten(1), action)
        return (true.flatten(1) + delta * active.unsqueeze(1)).view_as(true)

    def _paid(self, agent: str, step: BatchedStep) -> Tensor:
        """The reward of an agent's adversary."""
        team = [other for other in self.env.possible_agents if self.env.teams[other] == self.env.teams[agent]]
        return loss(step.rewards, team, adversaries=len(set(team).intersection(self.attacked)))


def attacked_agents(
    observations: Mapping[str, spaces.Space[Any]], agents: Sequence[str] | None
) -> tuple[str, ...]:
    """The agents whose observations are perturbed (None: all), in the environment's order.

    Raises:
        ValueError: An unknown agent, none, or one whose observations are not floating-point numbers.
    """
    wanted = tuple(observations) if agents is None else tuple(agents)
    if not wanted:
        raise ValueError(f"expected agents out of {', '.join(observations)}; got none")
    for agent in wanted:
        one_of("agents", agent, observations)
        space = observations[agent]
        if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
            raise ValueError(f"expected floating-point observations of {agent!r}, got {space}; convert them")
    return tuple(agent for agent in observations if agent in wanted)


@dataclass(frozen=True)
class PerturbedGame:
    """Builds copies of an environment with adversaries; picklable, so that it travels to Ray workers.

    Attributes:
        spec: The environment.
        agents: The attacked agents; None: all.
        kind: Of the adversaries.
    """

    spec: EnvironmentSpec
    agents: tuple[str, ...] | None = None
    kind: Kind = "sa-rl"

    @property
    def name(self) -> str:
        """The name of the environment."""
        return self.spec.name

    def __call__(self, num_envs: int, device: torch.device) -> PerturbedBatch:
        env = make_batch(self.spec, num_envs, device=device)
        return PerturbedBatch(env, agents=self.agents, kind=self.kind)
