"""RLlib's multi-agent env runner with public names for what ours read and replace."""

from __future__ import annotations

import sys
from collections.abc import KeysView
from types import FrameType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.metrics import ENV_STEP_TIMER

from marl_aajr.rllib.internals.algorithms import foreign_env_to_module
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer


class OrderedEpisode(MultiAgentEpisode):
    """A multi-agent episode that lists its agents in the order in which they came in."""

    __slots__ = ()

    @property
    def agent_ids(self) -> KeysView[Any]:
        return dict.fromkeys(self.agent_episodes).keys()

    def get_agents_that_stepped(self) -> KeysView[Any]:
        return dict(self.get_observations(-1)).keys()

    def cut(self, len_lookback_buffer: int = 0) -> MultiAgentEpisode:
        return ordered(super().cut(len_lookback_buffer))

    def slice(self, slice_: slice, *, len_lookback_buffer: int | None = None) -> MultiAgentEpisode:
        return ordered(super().slice(slice_, len_lookback_buffer=len_lookback_buffer))


def ordered(episode: MultiAgentEpisode) -> MultiAgentEpisode:
    """Makes an episode an `OrderedEpisode`."""
    # RLlib names the class outright wherever it makes an episode.
    episode.__class__ = OrderedEpisode
    return episode


def samples_to_train(runner: Any) -> bool:
    """Whether the sample that an env runner makes just now, in a call further up, is one to train on.

    RLlib's algorithms ask for those without saying how much. `Algorithm.evaluate` asks for episodes or steps,
    of the runner of training where there is none of evaluation, and tells it nothing else; whoever asks for
    episodes or for random actions does not train on them either.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        asked = frame.f_locals if name == "sample" else {}
        more = asked.get("num_episodes") is not None or bool(asked.get("random_actions"))
        if name == "_evaluate_on_local_env_runner" or (more and asked.get("self") is runner):
            return False
        frame = frame.f_back
    return True


_T = TypeVar("_T")


class _Renamed(Generic[_T]):
    """A private attribute of RLlib's under a name of its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, runner: Any, _: type | None = None) -> _T:
        value: _T = getattr(runner, self._name)
        return value

    def __set__(self, runner: Any, value: _T) -> None:
        setattr(runner, self._name, value)


class OpenEnvRunner(MultiAgentEnvRunner):
    """RLlib's multi-agent env runner with ordered episodes and its private parts in public.

    Errors of the environments are raised as they are: RLlib would log them, and reset or raise an empty
    RuntimeError.
    """

    plays_episodes: ClassVar[bool] = True
    """Whether it samples RLlib's episodes, through RLlib's connectors."""
    first_seed = _Renamed[int | None]("_seed")
    """The seed of the next first reset; None: it is not seeded."""
    place = _Renamed[torch.device]("_device")
    """The device on which the modules compute actions."""
    must_reset = _Renamed[bool]("_needs_initial_reset")
    """Whether the next sample begins new episodes."""

    @property
    def normalizer(self) -> ObservationNormalizer | None:
        """The observation filter of this runner."""
        pieces = (p for p in self._env_to_module.connectors if isinstance(p, ObservationNormalizer))
        return next(pieces, None)

    @property
    def foreign_connectors(self) -> list[str]:
        """Names of the env-to-module connectors that are neither RLlib's defaults nor our filter."""
        return foreign_env_to_module(self._env_to_module, ObservationNormalizer)

    def forget_episodes(self) -> None:
        """Drop the episodes in progress, and what was not yet reported of them."""
        self._cached_to_module = None
        self._ongoing_episodes = [None] * self.num_envs
        self._ongoing_episodes_for_metrics.clear()
        self._done_episodes_for_metrics.clear()

    def announce_environment(self, context: EnvContext) -> None:
        """Call what the user wants called when an environment was built."""
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    def step_copies(self, actions: list[Any]) -> Any:
        """One step of all copies."""
        return self.env.step(actions)

    def episode_begins(self, copy: int) -> None:
        """Called before a copy begins an episode."""

    def collect(self, *_: Any, **request: Any) -> list[Any]:
        """The result of `sample`, which fills in the arguments that its caller left out."""
        return super()._sample(**request)

    def _sample(self, **request: Any) -> list[Any]:
        return self.collect(**request)

    def _try_env_step(self, actions: list[Any]) -> Any:
        with self.metrics.log_time(ENV_STEP_TIMER):
            return self.step_copies(actions)

    def _new_episode(self, env_index: int, episodes: list[Any] | None = None) -> None:
        self.episode_begins(env_index)
        super()._new_episode(env_index, episodes)
        ordered((self._ongoing_episodes if episodes is None else episodes)[env_index])
