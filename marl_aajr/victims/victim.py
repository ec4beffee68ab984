"""A victim: a frozen team of policies that plays without Ray, exactly as it played in training.

An observation becomes an action in four steps: the filter, as float32 and flat (the network's inputs
`[B, d]`, which an attack perturbs); the module (distribution inputs `[B, m]`); the most likely or a sampled
action; the mapping of Box actions to their bounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution, env_action_map, from_space
from marl_aajr.core.environment_values import named
from marl_aajr.core.token_network import TokenNetwork
from marl_aajr.victims.filters import ObservationFilter, same_filter
from marl_aajr.victims.recurrent import Memory, is_recurrent
from marl_aajr.victims.spaces import AgentSpaces, by_network, check_agents, check_masks_are_named
from marl_aajr.victims.victim_policy import VictimPolicy, check_network, frozen


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A frozen team of policies. The modules are copied, in evaluation mode and without gradients.

    Agents that are no strings are known by their names (`marl_aajr.core.environment_values.agent_name`).

    Attributes:
        module_of: agent -> module id; its order is the order of the agents.
        modules: module id -> network from one observation batch `[B, *shape]` to distribution inputs
            `[B, m]`; or a recurrent one (`is_recurrent`).
        observation_spaces: agent -> Box, as the environment gives them (before the filter).
        action_spaces: agent -> Discrete, MultiDiscrete or one-dimensional Box, as the environment declares.
        filters: agent -> its frozen observation filter; None, or no entry: none.
        critics: module id -> network from the same observations to the return that is expected, `[B, 1]` or
            `[B]`; only the critic attack asks for it.
        normalize_actions: RLlib's setting of the same name: bounded Box actions are mapped from [-1, 1] to
            the bounds, then clipped to them.
        clip_actions: RLlib's setting of the same name, which acts where `normalize_actions` does not.
        greedy_only: whether sampled actions are refused, because the outputs say which action is best, but
            not how one is drawn (the Q values of DQN, a squashed Gaussian before squashing).
        env_name: name of the environment that the team was trained on.
        env_kwargs: keyword arguments of that environment, JSON values.

    Raises:
        ValueError: agents without module or space, agents of one module with different spaces, a space
            that is not supported, or a network that does not fit its spaces.
    """

    module_of: Mapping[str, str]
    modules: Mapping[str, nn.Module]
    observation_spaces: Mapping[str, gym.Space[Any]]
    action_spaces: Mapping[str, gym.Space[Any]]
    filters: Mapping[str, ObservationFilter | None] = field(default_factory=dict)
    critics: Mapping[str, nn.Module] = field(default_factory=dict)
    normalize_actions: bool = True
    clip_actions: bool = False
    greedy_only: bool = False
    env_name: str = ""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("module_of", "observation_spaces", "action_spaces", "filters"):
            object.__setattr__(self, name, named(getattr(self, name)))
        spaces = self.observation_spaces, self.action_spaces
        check_agents(
            self.module_of, *spaces, modules=self.modules, critics=self.critics, filters=self.filters
        )
        for kind in ("modules", "critics"):
            networks = {name: frozen(network, name) for name, network in getattr(self, kind).items()}
            object.__setattr__(self, kind, networks)
        for name, module in self.modules.items():
            seen, acts = (space[self.agents_of(name)[0]] for space in spaces)
            shape = seen.shape or ()
            check_network(module, name, shape=shape, action_space=acts, critic=self.critics.get(name))

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents, in the environment's order."""
        return tuple(self.module_of)

    @cached_property
    def distributions(self) -> dict[str, ActionDistribution]:
        """Module id -> the kind of its action distribution."""
        return {module_id: from_space(self.action_spaces[a]) for a, module_id in self.module_of.items()}

    def distribution(self, agent: str) -> ActionDistribution:
        """The kind of an agent's action distribution."""
        return self.distributions[self.module_of[agent]]

    def agents_of(self, module_id: str) -> tuple[str, ...]:
        """The agents that a module plays for."""
        return tuple(agent for agent, name in self.module_of.items() if name == module_id)

    def alike(self, agents: Collection[str]) -> list[list[str]]:
        """Agents in groups of one module and one filter, which one forward pass, and one attack, can take."""
        groups: list[list[str]] = []
        for agent in agents:
            for group in groups:
                same_module = self.module_of[group[0]] == self.module_of[agent]
                if same_module and same_filter(self.filters.get(group[0]), self.filters.get(agent)):
                    group.append(agent)
                    break
            else:
                groups.append([agent])
        return groups

    @property
    def recurrent(self) -> bool:
        """Whether some policy has a state, which a `Memory` keeps."""
        return any(is_recurrent(module) for module in self.modules.values())

    @property
    def draws(self) -> bool:
        """Whether some module draws random numbers by itself, which `reseed` begins anew."""
        return any(hasattr(module, "reseed") for module in self.modules.values())

    def reseed(self, seed: int) -> None:
        """Begin the random numbers of modules anew that draw by themselves."""
        for number, module in enumerate(self.modules.values()):
            if callable(begin := getattr(module, "reseed", None)):
                begin(seed + number)

    def memory(self, num_envs: int = 1) -> Memory:
        """A memory for recurrent policies in E copies of a game, at the beginning of its episodes."""
        return Memory({agent: self.modules[name] for agent, name in self.module_of.items()}, num_envs)

    def policy(self, agent: str, **columns: Any) -> VictimPolicy:
        """The policy of an agent, on network inputs `[B, d]` (see `inputs`).

        Args:
            agent: one of `agents`; agents of one module have the same policy.
            columns: what each row has of its own, of `VictimPolicy`: `action_mask` (legal actions), `state`
                (of a recurrent policy, from `memory`) and `tokens` (of one that reads words).
        """
        module_id = self.module_of[agent]
        return VictimPolicy(
            self.modules[module_id],
            self.distributions[module_id],
            shape=self.observation_spaces[agent].shape or (),
            critic=self.critics.get(module_id),
            **columns,
        )

    def inputs(self, agent: str, obs: Tensor) -> Tensor:
        """The inputs of an agent's network: filtered, float32, flat; `[B, *shape] -> [B, d]`.

        Words are embedded, `[B, L·e]`.
        """
        network = self.modules[self.module_of[agent]]
        if isinstance(network, TokenNetwork):
            return network.embed(obs.flatten(1).long())
        if (observed := self.filters.get(agent)) is not None:
            obs = observed(obs)
        return obs.float().flatten(1)

    def greedy(self, agent: str, outputs: Tensor) -> Tensor:
        """The most likely action for a batch of environments, `[B, m] -> [B, ...]`."""
        return self.to_environment(agent, self.distribution(agent).mode(outputs))

    def to_environment(self, agent: str, action: Tensor) -> Tensor:
        """An action of the agent's distribution as a batch of environments takes it, `[B, ...]`."""
        to_env = env_action_map(
            self.action_spaces[agent],
            normalize=self.normalize_actions,
            clip=self.clip_actions,
            device=action.device,
        )
        return to_env(action)

    def act(
        self,
        obs: Mapping[Any, Any],
        *,
        infos: Mapping[Any, Any] | None = None,
        generator: torch.Generator | None = None,
        memory: Memory | None = None,
    ) -> dict[Any, Any]:
        """Actions for one step of a PettingZoo environment, as it counts them.

        Args:
            obs: observation of each agent that must act: an array, or a dict of one and its `action_mask`.
            infos: those of the environment, where they say which actions are legal (`action_mask`).
            generator: source of random actions; None: greedy.
            memory: what recurrent policies remember of this episode, moved on by this step; take a new one,
                `victim.memory()`, when an episode begins.

        Raises:
            ValueError: a recurrent victim without a memory, or an observation of another form.

        Example:
            >>> obs, rewards, *_ = env.step(victim.act(obs))
        """
        from marl_aajr.victims.one_game import act

        return act(self, obs, infos or {}, generator=generator, memory=memory)

    @staticmethod
    def from_policies(
        policies: Mapping[Any, nn.Module] | nn.Module,
        env: Any,
        *,
        critics: Mapping[Any, nn.Module] | None = None,
        filters: Mapping[Any, ObservationFilter | None] | None = None,
        normalize_actions: bool = False,
        clip_actions: bool = True,
        greedy_only: bool = False,
        env_name: str = "",
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> Victim:
        """A victim from torch modules and the PettingZoo environment that they play.

        Args:
            policies: agent -> its network, or one network that plays all agents. It maps observations
                `[B, *shape]` (float32) to the inputs of the action distribution `[B, m]`: logits for Discrete
                and MultiDiscrete actions (those of all parts, one after the other), mean and log σ for Box
                ones. A network with `initial_state(rows)` and `forward(obs, state)` has a memory.
            env: declares the agents and their spaces; of Dict observations with an `action_mask`, networks
                read the other part, and forbidden logits are masked for them.
            critics: agent -> a network of its expected return, `[B, 1]` or `[B]`; for the critic attack.
            filters: agent -> frozen observation filter in front of its network.
            normalize_actions: whether Box actions in [−1, 1] stand for their bounds.
            clip_actions: whether Box actions are clipped to their bounds where they are not normalised.
            greedy_only: whether outputs say which action is best, but not how one is drawn (Q values).
            env_name: name of the environment that `evaluate` builds where none is given.
            env_kwargs: arguments of that environment, JSON values.

        Raises:
            ValueError: an agent without a network, or a network that does not fit the spaces.

        Example:
            >>> net = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 5))
            >>> victim = Victim.from_policies(net, simple_spread_v3.parallel_env())
            >>> evaluate(victim, "mpe2.simple_spread_v3", suite="quick").worst
        """
        spaces = AgentSpaces.of(env)
        check_masks_are_named(spaces)
        names, networks = by_network(policies, list(spaces.observation_spaces))
        return Victim(
            module_of=names,
            modules=networks,
            critics={names[agent]: critic for agent, critic in named(critics or {}).items()},
            observation_spaces=spaces.observation_spaces,
            action_spaces=spaces.action_spaces,
            filters=filters or {},
            normalize_actions=normalize_actions,
            clip_actions=clip_actions,
            greedy_only=greedy_only,
            env_name=env_name,
            env_kwargs=env_kwargs or {},
        )

    @staticmethod
    def from_sb3(models: Any, env: Any, **settings: Any) -> Victim:
        """A victim from trained models of Stable-Baselines3: made of their layers, it needs no SB3.

        Models with a distribution (PPO, A2C, TRPO, MaskablePPO, RecurrentPPO) may sample; DQN, SAC, TD3 and
        DDPG play greedily only. Observations go through the `VecNormalize` that a model's environment has.

        Args:
            models: agent -> its model, or one model that plays all agents.
            env: see `from_policies`; as it is before `VecNormalize`.
            settings: `filters`, `env_name` and `env_kwargs` of `from_policies`.

        Raises:
            ValueError: an agent without a model, or one that does not fit or does not play by layers alone.
        """
        from marl_aajr.victims.sb3 import victim_from_sb3

        return victim_from_sb3(models, env, **settings)

    def save(self, folder: Path | str) -> Path:
        """Write the portable artefact, whole or not at all; a folder that holds one already is replaced.

        Raises:
            ValueError: the folder holds something else, or a network has a layer that cannot be described.
        """
        from marl_aajr.victims.portable import save_victim

        return save_victim(self, folder)

    @staticmethod
    def load(folder: Path | str) -> Victim:
        """Read a victim that `save` wrote: its outputs are the same to the last bit.

        Raises:
            ValueError: no victim there, a file of something else or of a newer version, or a damaged file.
        """
        from marl_aajr.victims.portable import load_victim

        return load_victim(folder)
