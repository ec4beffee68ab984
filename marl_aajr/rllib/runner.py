"""The env runner of our own runs: RLlib's, made repeatable.

Two things keep RLlib 2.60 from giving the same numbers twice:

1. ``MultiAgentEpisode`` hands out its agents as sets of strings, whose order differs from process to process
   (PYTHONHASHSEED). Rows of a batch, and with them the random numbers of each agent's action, follow it.
2. A checkpoint holds neither environments nor random generators. So both the run that goes on and the run
   that is resumed start afresh at a checkpoint, from a seed of its own (:meth:`RunEnvRunner.start_afresh`).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, KeysView
from typing import Any

from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.metrics import ENV_STEP_TIMER


class OrderedEpisode(MultiAgentEpisode):
    """A multi-agent episode that lists its agents in the order in which they came in."""

    __slots__ = ()

    @property
    def agent_ids(self) -> KeysView[Any]:
        return dict.fromkeys(self.agent_episodes).keys()

    def get_agents_that_stepped(self) -> KeysView[Any]:
        return dict(self.get_observations(-1)).keys()

    def cut(self, len_lookback_buffer: int = 0) -> MultiAgentEpisode:
        return _ordered(super().cut(len_lookback_buffer))

    def slice(self, slice_: slice, *, len_lookback_buffer: int | None = None) -> MultiAgentEpisode:
        return _ordered(super().slice(slice_, len_lookback_buffer=len_lookback_buffer))


def _ordered(episode: MultiAgentEpisode) -> MultiAgentEpisode:
    # RLlib names the class outright wherever it makes an episode.
    episode.__class__ = OrderedEpisode
    return episode


class RunEnvRunner(MultiAgentEnvRunner):
    """RLlib's multi-agent env runner with ordered episodes, exact returns and a defined beginning.

    Attributes:
        episode_returns: for each copy of the environment, what each agent has earned in the episode so far.
            RLlib's episodes leave out what agents earn that never get to act (the second player of a card
            game whose first player folds).
    """

    def make_env(self) -> None:
        super().make_env()
        self.episode_returns: list[dict[str, float]] = [defaultdict(float) for _ in range(self.num_envs)]

    def start_afresh(self, *, seed: int) -> None:
        """Build new environments; the next sample begins new episodes, seeded with ``seed``.

        Environments are built and not only reset: some keep something across resets, and a resumed run has
        new ones.
        """
        with warnings.catch_warnings():
            # Gymnasium warns that RLlib gives every environment the same name.
            warnings.simplefilter("ignore", UserWarning)
            self.make_env()
        self._seed = seed
        self._cached_to_module = None
        self._ongoing_episodes = [None] * self.num_envs
        self._ongoing_episodes_for_metrics.clear()
        self._done_episodes_for_metrics.clear()

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``func`` on this runner; its error is the caller's.

        RLlib would log it here, wait for a minute and end this process.
        """
        return func(self, *args, **kwargs)

    def _try_env_step(self, actions: list[Any]) -> Any:
        # RLlib would log what went wrong and raise an empty RuntimeError.
        with self.metrics.log_time(ENV_STEP_TIMER):
            results = self.env.step(actions)
        for returns, rewards in zip(self.episode_returns, results[1], strict=True):
            for agent, reward in rewards.items():
                returns[agent] += reward
        return results

    def _new_episode(self, env_index: int, episodes: list[Any] | None = None) -> None:
        self.episode_returns[env_index] = defaultdict(float)
        super()._new_episode(env_index, episodes)
        _ordered((self._ongoing_episodes if episodes is None else episodes)[env_index])
