"""One episode-by-episode view of any PettingZoo environment, simultaneous or turn-based.

PettingZoo has two interfaces, and most turn-based environments refuse its own conversion between them.
A `Game` hides the difference: every turn says who must act next, what they see and what they earned.
Everything plays through it. The two adapters are in `marl_aajr.rollout.pettingzoo_games`.

A game saves its environment as bytes. Pickle alone would not do: most PettingZoo environments are `EzPickle`,
which pickles the constructor's arguments and nothing else. Here their attributes are pickled, random
generators included. Windows, surfaces and fonts of pygame are left out (those of the environment that the
state is put into take their place), and a simulator outside of Python (Box2D's worlds) is refused. What an
environment draws from the global generators of `random` and NumPy is no part of its state.
"""

from __future__ import annotations

import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NoReturn, TypeVar

from gymnasium import spaces
from gymnasium.utils import EzPickle

from marl_aajr.core.channels import Channel
from marl_aajr.core.environment_values import EnvironmentFault, observation_check
from marl_aajr.rollout.environment_channels import channels_of
from marl_aajr.rollout.game_agents import GameAgents, GameStep
from marl_aajr.rollout.teams import teams_of

_Answer = TypeVar("_Answer")
_OUTCOME = ("rewards", "terminations", "truncations", "infos")
_RETURNS = {"reset": ("observations", "infos"), "step": ("observations", *_OUTCOME)}
_RETURNS["last"] = ("observation", "reward", "termination", "truncation", "info")


class Game(ABC):
    """Any PettingZoo environment, played turn by turn; its agents are known as `GameAgents` has them.

    Args:
        env: A PettingZoo environment.
        name: Its name in faults and messages.
        teams: What is said of its teams (`marl_aajr.rollout.teams.read_teams`); None: what it says itself.
        channels: The same of the channels of its observations (`marl_aajr.core.channels.read_channels`).

    Attributes:
        agent_ids: The environment's own key of each possible agent, by name.
        possible_agents: The name of every agent that may appear, in the environment's order.
        action_spaces: Space of each possible agent; actions count from 0.
        env_action_spaces: The same as the environment declares it.
        copy: Index of this copy among several, for faults; None where there is one.
        state_space: Space of the global states; None where the environment declares none.

    Raises:
        ValueError: If the environment does not say who its agents are, what they do, or who plays with whom.
    """

    def __init__(self, env: Any, *, name: str, teams: Any = None, channels: Any = None) -> None:
        self.env = env
        self.name = name
        self.copy: int | None = None
        self._agents = agents = GameAgents(env, name=name, blame=self._blame)
        self._rank = {agent: i for i, agent in enumerate(agents.names)}
        self._steps = 0
        self.agent_ids, self.possible_agents = agents.ids, tuple(agents.ids)
        self.action_spaces, self.env_action_spaces = agents.action_spaces, agents.env_action_spaces
        self._teams = partial(teams_of, env, self.agent_ids, name=name, said=teams)
        self._channels = partial(channels_of, env, name=name, said=channels)
        try:
            self._teams()
        except ValueError:  # some environments know their teams only after a reset
            self._look_for_masks()
            self._teams()
        self.state_space: spaces.Space[Any] | None = getattr(env, "state_space", None)
        self._check_state = None if self.state_space is None else observation_check(self.state_space)

    @cached_property
    def teams(self) -> dict[str, str]:
        """The team of each possible agent; scores are per team."""
        self._look_for_masks()
        return self._teams()

    @cached_property
    def channels(self) -> dict[str, dict[str, Channel]]:
        """The channels of each possible agent's observation, where they are known."""
        return self._channels(self.observation_spaces)

    @property
    def observation_spaces(self) -> dict[str, spaces.Space[Any]]:
        """Space of each possible agent, with the action mask where there is one; see `infos_have_masks`."""
        self._look_for_masks()
        return self._agents.observation_spaces

    @property
    def infos_have_masks(self) -> bool:
        """Whether the environment tells in `infos` which actions are legal.

        No space declares it: it is known from the first reset. Who asks before it resets the environment.
        """
        self._look_for_masks()
        return bool(self._agents.infos_have_masks)

    @property
    def render_mode(self) -> str | None:
        return getattr(self.env, "render_mode", None)

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(getattr(self.env, "metadata", None) or {})

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> GameStep:
        """Starts an episode.

        Args:
            seed: Seed of the environment's generator; None: as the environment does without one.
            options: Passed to the environment.

        Returns:
            The first turn: first observations and infos, rewards 0.

        Raises:
            EnvironmentFault: If the environment breaks its contract.
        """
        self._steps = 0
        self._agents.check_spaces()
        turn = self._call(lambda: self._reset(seed, None if options is None else dict(options)), " in reset")
        if turn.over:
            self._blame("was over before anybody acted")
        self._agents.look_for_masks(turn.infos)
        return self._agents.in_front(turn)

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
        asked = [self._agents.names[agent] for agent in self._acting]
        if missing := [agent for agent in asked if agent not in actions]:
            raise ValueError(
                f"expected actions for {asked} in {self.name}, got {list(actions)}; add {', '.join(missing)}"
            )
        self._steps += 1
        given = zip(self._acting, asked, strict=True)
        own = {agent: self._agents.action(agent, actions[name]) for agent, name in given}
        return self._agents.in_front(self._call(lambda: self._step(own)))

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
        """The environment, and how far its episode has come; the module says what that can hold.

        Raises:
            ValueError: Something in the environment cannot be pickled.
        """
        buffer = io.BytesIO()
        try:
            _Writer(buffer).dump({name: getattr(self, name, None) for name in ("env", *self._progress)})
        except Exception as error:  # what refuses to be pickled does so in its own way
            raise ValueError(
                f"expected an environment that can be saved, got {self.label} ({type(error).__name__}: "
                f"{error}); play it without saving, or save it by replaying its actions from the seed"
            ) from error
        return buffer.getvalue()

    def set_state(self, state: bytes) -> None:
        """Go on from where `get_state` was asked.

        Args:
            state: A pickle: from a source that you would run code from.
        """
        self._look_for_masks()
        writer = _Writer(io.BytesIO())
        writer.dump(self.env)
        vars(self).update(_Reader(io.BytesIO(state), writer.left_out).load())

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
    def _step(self, actions: dict[Any, Any]) -> GameStep: ...

    _acting: tuple[Any, ...] = ()  # before the first reset nobody may act
    _ended: set[Any]
    _progress: tuple[str, ...] = ("_acting", "_ended", "_steps")  # what a game knows of its episode

    def _look_for_masks(self) -> None:
        if self._agents.infos_have_masks is None:
            self._agents.look_for_masks(self._call(lambda: self._reset(0, None), " in reset").infos)
            self._acting = ()

    def _call(
        self, play: Callable[[], _Answer], where: str = "", allowed: type[Exception] = EnvironmentFault
    ) -> _Answer:
        try:
            return play()
        except (EnvironmentFault, allowed):
            raise
        except Exception as error:
            self._blame(f"raised {type(error).__name__}{where}: {error}", error)

    def _parts(self, method: str, answer: Any) -> Any:
        """What a method of the environment returned, if it has as many parts as PettingZoo says."""
        parts = _RETURNS[method]
        if not isinstance(answer, tuple | list) or len(answer) != len(parts):
            got = f"{len(answer)} values" if isinstance(answer, tuple | list) else type(answer).__name__
            self._blame(
                f"returned {got} from {method}, expected ({', '.join(parts)}) as in PettingZoo since 1.23; "
                "use a newer version of the environment, or wrap it"
            )
        return answer

    def _came_back(self, agent: Any) -> NoReturn:
        self._blame(
            f"agent {agent!r} came back after it had ended; give a new life a new name, or do not end the "
            "old one"
        )

    def _blame(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise EnvironmentFault(f"{self.label}, step {self._steps}: {what}") from cause


class _Writer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self.left_out: dict[str, list[Any]] = {}

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        """Kind and number among those of the kind."""
        if type(obj).__module__.partition(".")[0] != "pygame" or _picklable(obj):
            return None
        alike = self.left_out.setdefault(type(obj).__qualname__, [])
        known = [i for i, other in enumerate(alike) if other is obj]
        if not known:
            alike.append(obj)
        return type(obj).__qualname__, known[0] if known else len(alike) - 1

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, EzPickle):
            return NotImplemented
        return object.__new__, (type(obj),), vars(obj), None, None, _fill


class _Reader(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, lent: dict[str, list[Any]]) -> None:
        super().__init__(buffer)
        self._lent = lent

    def persistent_load(self, pid: tuple[str, int]) -> Any:
        kind, number = pid
        alike = self._lent.get(kind, [])
        return alike[number] if number < len(alike) else None


def _fill(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


def _picklable(obj: Any) -> bool:
    try:
        pickle.dumps(obj)
    except Exception:
        return False
    return True
