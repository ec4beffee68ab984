"""One step of a game, and its agents: as their environment has them, and as everybody else knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gymnasium import spaces

from marl_aajr.core.checks import grouped
from marl_aajr.core.environment_values import (
    ACTION_MASK,
    agent_name,
    as_action,
    choices,
    joined,
    joined_space,
    legal_actions,
    number,
    observation_check,
    single_precision,
    zero_based,
)

_LARGEST = float(np.finfo(np.float32).max)
"""Rewards are kept as float32."""


METRICS = "metrics"
"""The key of an agent's infos under which environments report metrics of an episode."""


def reported(infos: Mapping[Any, Any]) -> dict[str, float]:
    """The metrics of an episode that the infos of its last step report beside rewards, such as its success.

    An environment reports them as `infos[agent]["metrics"] = {"success": 1.0}` in the step in which the
    episode is over. Finite numbers count; where several agents report one name, it is their mean. Higher is
    better.
    """
    told = [info[METRICS] for info in infos.values() if isinstance(info, Mapping) and METRICS in info]
    numbers = grouped(
        (str(name), float(value))
        for metrics in told
        if isinstance(metrics, Mapping)
        for name, value in metrics.items()
        if isinstance(value, Real) and isfinite(value)
    )
    return {name: sum(values) / len(values) for name, values in numbers.items()}


class GameStep(NamedTuple):
    """The answer of a game to a reset or to actions.

    An agent is in `obs` when it must act next, or when it has just ended (its last observation, which
    bootstraps a truncated value). The other dicts have an entry for each agent that is told something.

    Attributes:
        obs: Observations by agent.
        rewards: Reward of each agent since its last observation; 0 after a reset.
        terminations: True for agents that reached a terminal state in this turn.
        truncations: True for agents that were cut off in this turn, for example by a time limit.
        infos: Whatever the environment adds.
        over: True when nobody is left to act.
    """

    obs: dict[str, Any]
    rewards: dict[str, float]
    terminations: dict[str, bool]
    truncations: dict[str, bool]
    infos: dict[str, Any]
    over: bool

    @property
    def acting(self) -> tuple[str, ...]:
        """The agents whose action the next step needs."""
        return tuple(agent for agent in self.obs if not (self.terminations[agent] or self.truncations[agent]))

    def each(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> GameStep:
        """The same with each mapping by agent changed."""
        *parts, over = self
        return GameStep._make([*map(change, parts), over])

    def tell(self, agent: Any, reward: float, terminated: bool, truncated: bool, info: Any) -> None:
        """Write down what an agent is told beside its observation."""
        self.rewards[agent], self.infos[agent] = reward, info
        self.terminations[agent], self.truncations[agent] = terminated, truncated


class GameAgents:
    """The agents of an environment, and the border between its ways and ours.

    Behind it, agents are any hashable, legal actions may stand in `infos`, actions count from the `start` of
    their space, and observations, rewards and flags come in any type. In front of it agents have names, legal
    actions are a part of the observation, actions count from 0, and types are those of the spaces, with
    float32 for float16.

    Args:
        env: See `marl_aajr.rollout.game.Game`, as for `name`.
        blame: Raises the fault of the environment, with its message.

    Attributes:
        names: The name of each agent, by the environment's own key of it.
        ids: The other way round; what follows is by name, as in `marl_aajr.rollout.game.Game`.
        observation_spaces: With the action mask where there is one.
        action_spaces: Actions count from 0.
        env_action_spaces: The same as the environment declares it.
        infos_have_masks: Whether infos say which actions are legal; None until `look_for_masks`.

    Raises:
        ValueError: If the environment does not say who its agents are, or what they see and do.
    """

    def __init__(self, env: Any, *, name: str, blame: Callable[[str], NoReturn]) -> None:
        agents, self._spaces = _declared(env, name)
        self.names = {agent: agent_name(agent) for agent in agents}
        self.ids = {own: agent for agent, own in self.names.items()}
        if not agents or len(self.ids) != len(agents):
            raise ValueError(
                f"expected {name} to list its agents in possible_agents, each once and with a name of its "
                f"own, got {list(agents)}; set it in the environment's constructor"
            )
        self._env, self._blame = env, blame
        self._renamed = any(type(agent) is not str for agent in agents)
        self._seen = {agent: single_precision(seen) for agent, (seen, _) in self._spaces.items()}
        self.observation_spaces = self.named(self._seen)
        self._checks = {agent: observation_check(seen) for agent, seen in self._seen.items()}
        self._choices = {
            agent: count
            for agent, (seen, acts) in self._spaces.items()
            if (count := choices(acts)) and not (isinstance(seen, spaces.Dict) and ACTION_MASK in seen.spaces)
        }
        self.env_action_spaces = self.named({agent: acts for agent, (_, acts) in self._spaces.items()})
        self.action_spaces = {agent: zero_based(acts) for agent, acts in self.env_action_spaces.items()}
        self._takes = {agent: _taken(acts) for agent, (_, acts) in self._spaces.items()}
        self.infos_have_masks = None if self._choices else False

    def named(self, by_agent: Mapping[Any, Any]) -> dict[str, Any]:
        """A mapping from the environment's own keys, with names."""
        return {self.names[agent]: value for agent, value in by_agent.items()}

    def look_for_masks(self, infos: Mapping[Any, Any]) -> None:
        """Look whether the infos of the first reset hold legal actions, which no space declares."""
        if self.infos_have_masks is not None:
            return
        # In turns, the first answer is about one agent; the environment tells something to all of them.
        infos = {**(getattr(self._env, "infos", None) or {}), **infos}
        self.infos_have_masks = any(_mask_in(infos.get(agent)) is not None for agent in self._choices)
        for agent, count in self._choices.items() if self.infos_have_masks else ():
            self.observation_spaces[self.names[agent]] = joined_space(self._seen[agent], count)

    def in_front(self, turn: GameStep) -> GameStep:
        """The environment's turn as those in front see it."""
        for agent, count in self._choices.items():
            mask = _mask_in(turn.infos.get(agent))
            if self.infos_have_masks:
                if agent in turn.obs:
                    turn.obs[agent] = joined(turn.obs[agent], self._legal(agent, mask, count))
            elif mask is not None:
                self._blame(
                    f"the infos of agent {agent!r} have an {ACTION_MASK}, but those of reset had none; give "
                    "it from the first reset on, 1 for every action where all are legal"
                )
        return turn.each(self.named) if self._renamed else turn

    def action(self, agent: Any, given: Any) -> Any:
        """An action from the front as the environment takes it."""
        return self._takes[agent](given)

    def observation(self, agent: Any, given: Any) -> Any:
        """An observation in the type of its space."""
        check = self._checks.get(agent)
        if check is None:
            self._blame(f"has an agent {agent!r} that is not in possible_agents")
        try:
            return check(given)
        except ValueError as reason:
            self._blame(f"the observation of agent {agent!r} {reason}")

    def outcome(
        self, agent: Any, reward: Any, terminated: Any = False, truncated: Any = False
    ) -> tuple[float, bool, bool]:
        """An agent's reward and flags, of whatever type, as one number each."""
        if type(reward) is float and abs(reward) < _LARGEST and type(terminated) is type(truncated) is bool:
            return reward, terminated, truncated
        found = []
        for what, given in (("reward", reward), ("termination", terminated), ("truncation", truncated)):
            try:
                value = number(given)
            except (TypeError, ValueError):
                vector = what == "reward" and np.size(given) > 1
                advice = "; weigh its parts in a wrapper (momaland: LinearizeReward)" if vector else ""
                self._blame(f"the {what} of agent {agent!r} is {given!r}, not a number{advice}")
            if not abs(value) < _LARGEST:
                self._blame(f"the {what} of agent {agent!r} is {value}, which is no number of float32")
            found.append(value)
        return float(found[0]), bool(found[1]), bool(found[2])

    def check_spaces(self) -> None:
        """Blame the environment if it has changed a space."""
        for agent, known in self._spaces.items():
            asks = (self._env.observation_space, self._env.action_space)
            for kind, old, ask in zip(("observation", "action"), known, asks, strict=True):
                space = ask(agent)
                if space is not old and space != old:
                    self._blame(f"the {kind} space of agent {agent!r} changed from {old} to {space}")

    def _legal(self, agent: Any, mask: Any, count: int) -> Any:
        try:
            return legal_actions([1] * count if mask is None else mask, count)
        except ValueError as reason:
            self._blame(f"the {ACTION_MASK} of agent {agent!r} {reason}")


def _declared(env: Any, name: str) -> tuple[tuple[Any, ...], dict[Any, tuple[Any, Any]]]:
    """The agents and their two spaces; some environments know them only after a reset."""
    for reset in (False, True):
        try:
            if reset:
                env.reset(seed=0)
            agents = tuple(getattr(env, "possible_agents", None) or (env.agents if reset else ()))
            known = {agent: (env.observation_space(agent), env.action_space(agent)) for agent in agents}
        except Exception as error:
            if reset:
                raise ValueError(
                    f"expected {name} to say its possible_agents and their spaces, at the latest after a "
                    f"reset, got {type(error).__name__}: {error}; define observation_space(agent) and "
                    "action_space(agent)"
                ) from error
            continue
        if reset or (known and all(isinstance(s, spaces.Space) for both in known.values() for s in both)):
            break
    return agents, known


def _mask_in(info: Any) -> Any:
    return info.get(ACTION_MASK) if isinstance(info, Mapping) else None


def _taken(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """Makes the environment's actions in this space of those that count from 0."""
    plain = isinstance(space, spaces.Discrete) and space.start == 0
    return int if plain else partial(as_action, space=space)
