"""One episode-by-episode view of any PettingZoo environment, simultaneous or turn-based.

PettingZoo has two interfaces, and most turn-based environments refuse its own conversion between them.
A `Game` hides the difference: every turn says who must act next, what they see and what they earned.
The RLlib wrapper, the batched environments and the evaluation all play through it, so an environment is
adapted, checked and blamed in one place. The two adapters are in `marl_aajr.rollout.pettingzoo_games`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

from gymnasium import spaces

from marl_aajr.rollout.environment_state import restore, save
from marl_aajr.rollout.faults import EnvironmentFault, observation_check
from marl_aajr.rollout.teams import teams_of

_Answer = TypeVar("_Answer")


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


class Game(ABC):
    """Any PettingZoo environment, played turn by turn.

    Args:
        env: A PettingZoo environment with `possible_agents`.
        name: Its name in faults and messages.

    Attributes:
        possible_agents: Every agent that may appear, in the environment's order.
        observation_spaces: Space of each possible agent.
        action_spaces: Space of each possible agent.
        copy: Index of this copy among several, for faults; None where there is one.
        teams: The team of each possible agent; scores are per team.
        state_space: Space of the global states; None where the environment declares none.

    Raises:
        ValueError: If the environment does not say who its agents are.
    """

    def __init__(self, env: Any, *, name: str) -> None:
        agents = tuple(getattr(env, "possible_agents", None) or ())
        if not agents or len(set(agents)) != len(agents):
            raise ValueError(
                f"expected {name} to list its agents in possible_agents, each once, got "
                f"{list(agents)}; set it in the environment's constructor"
            )
        self.env = env
        self.name = name
        self.copy: int | None = None
        self.possible_agents: tuple[str, ...] = agents
        self.observation_spaces: dict[str, spaces.Space[Any]] = {
            agent: env.observation_space(agent) for agent in agents
        }
        self.action_spaces: dict[str, spaces.Space[Any]] = {
            agent: env.action_space(agent) for agent in agents
        }
        self.teams: dict[str, str] = teams_of(env, agents)
        self.state_space: spaces.Space[Any] | None = getattr(env, "state_space", None)
        self._check_state = None if self.state_space is None else observation_check(self.state_space)
        self._checks = {a: observation_check(s) for a, s in self.observation_spaces.items()}
        self._rank = {agent: i for i, agent in enumerate(agents)}
        self._steps = 0

    @property
    def render_mode(self) -> str | None:
        return getattr(self.env, "render_mode", None)

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(getattr(self.env, "metadata", None) or {})

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> GameStep:
        """Starts an episode.

        Args:
            seed: Seed of the environment's generator; None continues it (or takes entropy from the
                operating system: that is the environment's choice).
            options: Passed to the environment.

        Returns:
            The first turn: first observations and infos, rewards 0.

        Raises:
            EnvironmentFault: If the environment breaks its contract.
        """
        self._steps = 0
        self._check_spaces()
        turn = self._call(lambda: self._reset(seed, None if options is None else dict(options)), " in reset")
        if turn.over:
            self._blame("was over before anybody acted")
        return turn

    def step(self, actions: Mapping[str, Any]) -> GameStep:
        """Plays one turn.

        Args:
            actions: Actions by agent, as the action spaces define them. Every agent that the last turn
                asked for must be there; others are ignored.

        Returns:
            The next turn.

        Raises:
            ValueError: If an action is missing.
            EnvironmentFault: If the environment breaks its contract.
        """
        if not self._acting:
            raise ValueError(f"expected {self.name} to be in an episode; call reset first")
        if missing := [agent for agent in self._acting if agent not in actions]:
            raise ValueError(
                f"expected actions for {list(self._acting)} in {self.name}, got {list(actions)}; add "
                + ", ".join(map(str, missing))
            )
        self._steps += 1
        return self._call(lambda: self._step({agent: actions[agent] for agent in self._acting}))

    def state(self) -> Any:
        """The global state of the environment, for centralised critics (where it has one).

        Raises:
            EnvironmentFault: If there is none now (some have none when they are over), or it is not in the
                space that the environment declares for it.
            NotImplementedError: If the environment has none at all.
        """
        state = self._call(self.env.state, " in state", allowed=NotImplementedError)
        try:
            return state if self._check_state is None else self._check_state(state)
        except ValueError as reason:
            self._blame(f"the state {reason}")

    def get_state(self) -> bytes:
        """The environment, and how far its episode has come; see `marl_aajr.rollout.environment_state`.

        Raises:
            ValueError: The environment cannot be saved.
        """
        try:
            return save({"env": self.env, **{name: getattr(self, name, None) for name in self._progress}})
        except ValueError as reason:
            raise ValueError(
                f"expected an environment that can be saved, got {self.label} ({reason}); play it without "
                "saving, or save it by replaying its actions from the seed"
            ) from None

    def set_state(self, state: bytes) -> None:
        vars(self).update(restore(state, {"env": self.env}))

    @property
    def label(self) -> str:
        """The name of the game in faults."""
        return f"environment {self.name}" + ("" if self.copy is None else f", copy {self.copy}")

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    @abstractmethod
    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> GameStep: ...

    @abstractmethod
    def _step(self, actions: dict[str, Any]) -> GameStep: ...

    _acting: tuple[str, ...] = ()  # before the first reset nobody may act
    _progress: tuple[str, ...] = ("_acting", "_steps")  # what a game knows of its episode

    def _call(
        self,
        play: Callable[[], _Answer],
        where: str = "",
        allowed: type[Exception] = EnvironmentFault,
    ) -> _Answer:
        try:
            return play()
        except (EnvironmentFault, allowed):
            raise
        except Exception as error:
            self._blame(f"raised {type(error).__name__}{where}: {error}", error)

    def _observation(self, agent: str, obs: Any) -> Any:
        check = self._checks.get(agent)
        if check is None:
            self._blame(f"has an agent {agent!r} that is not in possible_agents")
        try:
            return check(obs)
        except ValueError as reason:
            self._blame(f"the observation of agent {agent!r} {reason}")

    def _reward(self, agent: str, reward: Any) -> float:
        try:
            value = float(reward)
        except (TypeError, ValueError):
            self._blame(f"the reward of agent {agent!r} is {reward!r}, not a number")
        if not math.isfinite(value):
            self._blame(f"the reward of agent {agent!r} is {value}")
        return value

    def _check_spaces(self) -> None:
        for agent in self.possible_agents:
            for kind, known, ask in (
                ("observation", self.observation_spaces, self.env.observation_space),
                ("action", self.action_spaces, self.env.action_space),
            ):
                space = ask(agent)
                if space is not known[agent] and space != known[agent]:
                    self._blame(f"the {kind} space of agent {agent!r} changed from {known[agent]} to {space}")

    def _blame(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise EnvironmentFault(f"{self.label}, step {self._steps}: {what}") from cause
