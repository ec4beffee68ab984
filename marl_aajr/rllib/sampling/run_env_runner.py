"""The env runner of our own runs: RLlib's, made repeatable.

Two things keep RLlib 2.60 from giving the same numbers twice:

1. `MultiAgentEpisode` hands out its agents as sets of strings, whose order differs from process to process
   (PYTHONHASHSEED). Rows of a batch, and with them the random numbers of each agent's action, follow it.
   `OpenEnvRunner` orders them.
2. A checkpoint holds neither environments nor random generators. So both the run that goes on and the run
   that is resumed start afresh at a checkpoint, from a seed of its own (`RunEnvRunner.start_afresh`).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from marl_aajr.rllib.internals.algorithms import connectors_of
from marl_aajr.rllib.internals.runners import OpenEnvRunner
from marl_aajr.rllib.plugin.attacked_episodes import AttackedEpisodes


class RunEnvRunner(OpenEnvRunner):
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
        """Build new environments; the next sample begins new episodes, seeded with `seed`.

        Environments are built and not only reset: some keep something across resets, and a resumed run has
        new ones. An attack on the episodes begins anew, too, with what it draws and when it is measured.
        """
        with warnings.catch_warnings():
            # Gymnasium warns that RLlib gives every environment the same name.
            warnings.simplefilter("ignore", UserWarning)
            self.make_env()
        self.first_seed = seed
        self.forget_episodes()
        for piece in connectors_of(self):
            if isinstance(piece, AttackedEpisodes):
                piece.start_afresh(seed=seed)

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` on this runner; its error is the caller's.

        RLlib would log it here, wait for a minute and end this process.
        """
        return func(self, *args, **kwargs)

    def step_copies(self, actions: list[Any]) -> Any:
        results = super().step_copies(actions)
        for returns, rewards in zip(self.episode_returns, results[1], strict=True):
            for agent, reward in rewards.items():
                returns[agent] += reward
        return results

    def episode_begins(self, copy: int) -> None:
        self.episode_returns[copy] = defaultdict(float)
