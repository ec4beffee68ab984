"""Attacks and frozen agents around any PettingZoo environment, for use with any other library.

    env = attacked(simple_spread_v3.parallel_env(), "pgd", victim, epsilon=0.1)

The observations of `env` are perturbed by an attack that is computed on a victim's policies: those that
will play, or others (a surrogate). `with_agents` lets frozen victims play some of the agents. Both take
parallel and AEC environments and return the same kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

from pettingzoo.utils.env import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import BaseParallelWrapper, BaseWrapper

from marl_aajr.attacks import Attack
from marl_aajr.core.checks import one_of
from marl_aajr.core.environment_values import agent_name, agent_names, named
from marl_aajr.evaluation.observation_attacker import ObservationAttacker, StepGenerators
from marl_aajr.rollout.environment_channels import channels_of
from marl_aajr.victims import Victim
from marl_aajr.victims.spaces import AgentSpaces, check_match

Env = TypeVar("Env")
"""A ParallelEnv or an AECEnv."""


def attacked(
    env: Env,
    attack: str | Attack,
    victim: Victim,
    *,
    epsilon: float | None = None,
    agents: Collection[Any] | None = None,
    units: Literal["raw", "network"] | None = None,
    seed: int = 0,
) -> Env:
    """An environment whose agents see s + δ instead of s.

    δ is what the attack finds against the victim's policies at s. A recurrent victim's state follows what was
    shown, once for each decision. Action masks, rewards and the state for centralised critics stay true.

    Args:
        env: a parallel or AEC environment.
        attack: a name of `marl-aajr list attacks`, or an `Attack`; one that
            learns must be fitted.
        victim: the policies that the perturbations are computed on: those that will play, or a surrogate.
        epsilon: the size; None: the attack's own.
        agents: whose observations are changed; None: all.
        units: of ε: the environment's (`"raw"`) or those behind the victim's observation filter
            (`"network"`); to be said where it has one.
        seed: of the attack's random numbers, which follow from it, from the seed that the environment was
            last reset with, and from the episodes and steps since. How often an agent looks does not matter.

    Returns:
        The environment, with its own keys of agents; observation spaces of attacked agents with bounds are
        wider by ε, and of float32 where they were of float16, which would round δ away. Agents that read are
        shown other words, by an attack on words.

    Raises:
        ValueError: an unknown agent, a victim that does not fit the environment, or an attack that does not
            fit the victim; see `evaluate`.

    Example:
        >>> env = attacked(env, "pgd", Victim.load("runs/ppo/victim"), epsilon=0.1, agents=["agent_0"])
    """
    everybody = _agents(env)
    chosen = list(everybody) if agents is None else list(agent_names(agents))
    for agent in chosen:
        one_of("agents", agent, everybody)
    check_match(victim, AgentSpaces.of(env, chosen))
    spaces = {agent: cast(Any, env).observation_space(key) for agent, key in everybody.items()}
    attacker = ObservationAttacker(
        attack,
        victim,
        chosen,
        epsilon=epsilon,
        units=units,
        seed=seed,
        channels=channels_of(env, spaces, name="the environment"),
    )
    kind = _AttackedParallel if isinstance(env, ParallelEnv) else _AttackedAEC
    return cast(Env, kind(env, attacker))


def with_agents(env: Env, players: Mapping[Any, Victim], *, sampled: bool = False, seed: int = 0) -> Env:
    """An environment in which frozen victims play some of the agents; the others are left.

    What the left ones earn while the victims move is theirs, as it is in the environment itself.

    Args:
        env: a parallel or AEC environment.
        players: agent -> the victim that plays it.
        sampled: whether victims sample their actions or take the most likely ones.
        seed: of sampled actions; see `attacked`.

    Returns:
        The environment of the other agents.

    Raises:
        ValueError: an unknown agent, a victim that does not fit, or nobody left to play.

    Example:
        >>> env = with_agents(simple_tag_v3.parallel_env(), dict.fromkeys(hunters, victim))
    """
    everybody = _agents(env)
    spaces: dict[int, dict[str, Any]] = {}
    for agent, victim in named(players).items():
        one_of("players", agent, everybody)
        here = AgentSpaces.of(env, [agent])
        check_match(victim, here, what=f"a victim for {agent!r}")
        spaces.setdefault(id(victim), dict(victim.action_spaces)).update(here.action_spaces)
    if len(players) == len(everybody):
        raise ValueError("expected agents that are left to play, got victims for all; use evaluate instead")
    kind = _PlayedParallel if isinstance(env, ParallelEnv) else _PlayedAEC
    # Its actions count as here, also those of a traitor, which was trained where they count from 0.
    counting = {id(v): replace(v, action_spaces=spaces[id(v)]) for v in players.values()}
    own = {everybody[agent]: counting[id(victim)] for agent, victim in named(players).items()}
    return cast(Env, kind(env, own, StepGenerators(seed) if sampled else None))


def _agents(env: Any) -> dict[str, Any]:
    """The environment's own key of each agent, by name."""
    if not isinstance(env, ParallelEnv | AECEnv):
        raise ValueError(
            f"expected a PettingZoo environment, got {type(env).__name__}; those of Gymnasium and "
            "RLlib become one by marl_aajr.rollout.adapters.to_pettingzoo"
        )
    return {agent_name(agent): agent for agent in env.possible_agents}


class _Attacked:
    """What the attacked environments of both kinds have in common; a wrapper stands behind it."""

    def __init__(self, env: Any, attacker: ObservationAttacker) -> None:
        super().__init__(env)  # type: ignore[call-arg]
        self.attacker = attacker
        self._spaces = {a: attacker.space(a, env.observation_space(a)) for a in env.possible_agents}

    def observation_space(self, agent: Any) -> Any:
        return self._spaces[agent]


class _AttackedParallel(_Attacked, BaseParallelWrapper[Any, Any, Any]):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, infos = self.env.reset(seed=seed, options=options)
        self.attacker.begin(seed)
        return self.attacker.show(obs, infos), infos

    def step(self, actions: dict[Any, Any]) -> Any:
        self.attacker.decided(actions)
        obs, *rest = self.env.step(actions)
        return self.attacker.show(obs, rest[-1]), *rest


class _AttackedAEC(_Attacked, BaseWrapper[Any, Any, Any]):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.env.reset(seed=seed, options=options)
        self.attacker.begin(seed)

    def observe(self, agent: Any) -> Any:
        seen = self.env.observe(agent)
        return seen if seen is None else self.attacker.show({agent: seen}, self.env.infos)[agent]

    def step(self, action: Any) -> None:
        agent = self.env.agent_selection
        if action is not None and self.attacker.victim.recurrent:
            self.observe(agent)  # It decided on this, whether it looked or not.
        self.attacker.decided([] if action is None else [agent])
        self.env.step(action)


class _Played:
    """What the environments of both kinds share in which victims play; a wrapper stands behind it."""

    env: Any

    def __init__(self, env: Any, players: Mapping[Any, Victim], generators: StepGenerators | None) -> None:
        super().__init__(env)  # type: ignore[call-arg]
        self.possible_agents = [agent for agent in env.possible_agents if agent not in players]
        self._players = dict(players)
        self._generators = generators
        self._begin(None)

    @property
    def agents(self) -> list[Any]:
        return [agent for agent in self.env.agents if agent not in self._players]

    def _begin(self, seed: int | None) -> None:
        """An episode begins."""
        self._earned: dict[Any, float] = {}
        self._memories = {id(victim): victim.memory() for victim in self._players.values()}
        if self._generators is not None:
            self._generators.begin(seed)

    def _act(self, agent: Any, seen: Any, infos: Mapping[Any, Any]) -> Any:
        """The action of one of the victims."""
        victim, generator = self._players[agent], None
        if self._generators is not None:
            generator = self._generators.of(list(self._players).index(agent))
            self._generators.proceed()
        memory = self._memories[id(victim)]
        return victim.act({agent: seen}, infos=infos, generator=generator, memory=memory)[agent]

    def _others(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Without what belongs to the victims."""
        return {agent: value for agent, value in values.items() if agent not in self._players}


class _PlayedParallel(_Played, BaseParallelWrapper[Any, Any, Any]):
    _obs: Mapping[Any, Any]
    _infos: Mapping[Any, Any]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._obs, self._infos = self.env.reset(seed=seed, options=options)
        self._begin(seed)
        return self._others(self._obs), self._others(self._infos)

    def step(self, actions: dict[Any, Any]) -> Any:
        here = [agent for agent in self.env.agents if agent in self._players]
        played = {agent: self._act(agent, self._obs[agent], self._infos) for agent in here}
        self._obs, *rest = self.env.step({**actions, **played})
        self._infos = rest[-1]
        return tuple(self._others(part) for part in (self._obs, *rest))


class _PlayedAEC(_Played, BaseWrapper[Any, Any, Any]):
    @property
    def rewards(self) -> dict[Any, float]:
        return {agent: self._earned.get(agent, 0.0) for agent in self.agents}

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return self._others(value) if name in ("terminations", "truncations", "infos") else value

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.env.reset(seed=seed, options=options)
        self._begin(seed)
        self._move()

    def step(self, action: Any) -> None:
        self._earned = {}
        self._take(action)
        self._move()

    def _move(self) -> None:
        """Let the victims play until it is somebody else's turn."""
        while self.agents and (agent := self.env.agent_selection) in self._players:
            out = self.env.terminations[agent] or self.env.truncations[agent]
            seen = None if out else self.env.observe(agent)
            self._take(None if out else self._act(agent, seen, self.env.infos))

    def _take(self, action: Any) -> None:
        self.env.step(action)
        for agent, reward in self.env.rewards.items():
            self._earned[agent] = self._earned.get(agent, 0.0) + reward
