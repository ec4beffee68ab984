"""Environments of Gymnasium and RLlib, played as those of PettingZoo are.

Ray is not imported here: an environment of RLlib exists only where its class has been imported already.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv
from pettingzoo.utils.wrappers import BaseParallelWrapper

from marl_aajr.core.environment_values import ACTION_MASK
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep

_Answer = tuple[dict[str, Any], dict[str, Any], dict[str, bool], dict[str, bool], dict[str, Any]]


def to_pettingzoo(env: gymnasium.Env[Any, Any]) -> ParallelEnv[str, Any, Any]:
    """An environment of Gymnasium, or an RLlib `MultiAgentEnv`, as a ParallelEnv.

    Raises:
        ValueError: If a `MultiAgentEnv` does not say who its agents are, or what their spaces are.
    """
    return RLlibParallelEnv(env) if is_multi_agent(type(env)) else GymnasiumParallelEnv(env)


def is_multi_agent(cls: Any) -> bool:
    """Whether a class is a `MultiAgentEnv` of RLlib."""
    module = sys.modules.get("ray.rllib.env.multi_agent_env")
    return module is not None and inspect.isclass(cls) and issubclass(cls, module.MultiAgentEnv)


def configured(cls: type[Any]) -> Callable[..., Any]:
    """Makes a `MultiAgentEnv` as RLlib does, from one `EnvContext`, which holds the keyword arguments.

    Arguments that the constructor takes by their names are given by their names.
    """

    def make(**kwargs: Any) -> Any:
        taken = inspect.signature(cls).parameters
        by_name = all(taken[name].kind is inspect.Parameter.KEYWORD_ONLY for name in taken)
        if by_name or (kwargs and set(kwargs) <= set(taken)):
            return cls(**kwargs)
        context = importlib.import_module("ray.rllib.env.env_context")
        return cls(context.EnvContext(kwargs, worker_index=0))

    make.__module__, make.__doc__ = cls.__module__, cls.__doc__
    return make


def find_gymnasium(name: str) -> Callable[..., Any] | None:
    """The maker of an environment of Gymnasium's registry; None if the name is in no spelling of it.

    Args:
        name: `CartPole-v1`, or with the module that registers it, as `gymnasium.make` takes it:
            `lbforaging:Foraging-8x8-2p-1f-v3`.

    Raises:
        ImportError: If the module cannot be imported.
        ValueError: If it registers no such environment.
    """
    module, _, registered = name.rpartition(":")
    if module and re.search(r"-v\d+$", registered):
        importlib.import_module(module)
        try:
            gymnasium.spec(registered)
        except gymnasium.error.Error as error:
            raise ValueError(
                f"expected an environment that {module} registers, got {name}: {error}"
            ) from None
    return partial(gymnasium.make, registered) if registered in gymnasium.registry else None


class _Adapter(BaseParallelWrapper[str, Any, Any]):
    state = ParallelEnv.state  # Gymnasium's environments have variables of this name

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.agents: list[str] = []


class GymnasiumParallelEnv(_Adapter):
    """An environment of Gymnasium, whose one agent is `"agent"`.

    Where actions and observations are tuples with a part for each of the environment's `n_agents`
    (lbforaging, rware and other environments of cooperative games), these are `"agent_0"`, `"agent_1"`, …
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        seen, acts = env.observation_space, env.action_space
        tuples = isinstance(seen, spaces.Tuple) and isinstance(acts, spaces.Tuple)
        count: Any = getattr(env.unwrapped, "n_agents", None) if tuples else None
        self._several = count is not None and len(seen) == len(acts) == count
        self.possible_agents = [f"agent_{i}" for i in range(count)] if self._several else ["agent"]
        self.observation_spaces = self._by_agent(seen)
        self.action_spaces = self._by_agent(acts)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return self._by_agent(obs), self._infos(info)

    def step(self, actions: dict[str, Any]) -> _Answer:
        given = tuple(actions[agent] for agent in self.possible_agents)
        obs, reward, *ends, info = self.env.step(given if self._several else given[0])
        terminations, truncations = (
            self._by_agent(end) if isinstance(end, list | tuple) else dict.fromkeys(self.agents, bool(end))
            for end in ends
        )
        rewards, infos = self._by_agent(reward), self._infos(info)
        if all(terminations[agent] or truncations[agent] for agent in self.agents):
            self.agents = []
        return self._by_agent(obs), rewards, terminations, truncations, infos

    def _infos(self, info: dict[str, Any]) -> dict[str, Any]:
        # Where MaskablePPO asks which actions are legal.
        if not self._several and self.env.has_wrapper_attr("action_masks"):
            info = {ACTION_MASK: self.env.get_wrapper_attr("action_masks")(), **info}
        return dict.fromkeys(self.agents, info)

    def _by_agent(self, parts: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, parts if self._several else [parts], strict=True))


class RLlibParallelEnv(_Adapter):
    """An RLlib `MultiAgentEnv`; the episode's flag `__all__` becomes that of each agent that lives.

    Where agents wait for one another, those that are not to move have no observation, as in RLlib and
    otherwise than in PettingZoo: `RLlibGame` plays such environments.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.possible_agents = list(env.possible_agents or env.agents or env.observation_spaces or ())
        for agent in self.possible_agents:
            for kind, ask in (("observation", self.observation_space), ("action", self.action_space)):
                if not isinstance(space := ask(agent), spaces.Space):
                    raise ValueError(
                        f"expected {type(env).__name__} to say the {kind} space of agent {agent!r}, got "
                        f"{space}; set {kind}_spaces, a dict from agent to space, in its constructor"
                    )

    def observation_space(self, agent: str) -> Any:
        return self.env.get_observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.env.get_action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, infos = self.env.reset(seed=seed, options=options)
        self.agents = list(obs)
        return obs, {agent: infos.get(agent, {}) for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> _Answer:
        obs, rewards, *flags, infos = self.env.step(actions)
        told = list(dict.fromkeys([*self.agents, *obs]))
        terminations, truncations = (
            {agent: bool(flag.get(agent) or flag.get("__all__")) for agent in told} for flag in flags
        )
        self.agents = [agent for agent in told if not (terminations[agent] or truncations[agent])]
        rewards = {**dict.fromkeys(told, 0.0), **rewards}
        infos = {agent: infos.get(agent, {}) for agent in told}
        return obs, rewards, terminations, truncations, infos


class RLlibGame(Game):
    """A `Game` over an `RLlibParallelEnv`: agents with an observation act, and earn between their turns."""

    _progress = (*Game._progress, "_earned")

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> GameStep:
        obs, infos = self.env.reset(seed=seed, options=options)
        self._earned = dict.fromkeys(self._rank, 0.0)
        self._ended = set()
        nothing = dict.fromkeys(obs, False)
        return self._turn(obs, nothing, nothing, infos)

    def _step(self, actions: dict[Any, Any]) -> GameStep:
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        for agent, reward in rewards.items():
            if agent in self._earned:
                self._earned[agent] += self._agents.outcome(agent, reward)[0]
        turn = self._turn(obs, terminations, truncations, infos)
        if not (turn.over or self._acting):
            self._blame("asked nobody to act, and did not say that the episode is over")
        return turn

    def _turn(self, obs: Any, terminations: Any, truncations: Any, infos: Any) -> GameStep:
        turn = GameStep({}, {}, {}, {}, {}, over=not self.env.agents)
        ended = {agent for agent, end in terminations.items() if end or truncations[agent]}
        for agent in self._rank:
            if agent in obs:
                turn.obs[agent] = self._agents.observation(agent, obs[agent])
            elif agent not in ended:
                continue
            elif not terminations[agent]:
                self._blame(f"agent {agent!r} was truncated without a last observation; give it one")
            if agent in self._ended:
                self._came_back(agent)
            turn.tell(agent, self._earned[agent], terminations[agent], truncations[agent], infos[agent])
            self._earned[agent] = 0.0
        if strangers := set(obs) - set(self._rank):
            self._blame(f"has an agent {strangers.pop()!r} that is not in possible_agents")
        self._ended |= ended
        self._acting = turn.acting
        return turn
