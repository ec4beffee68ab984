"""What was true, beside what agents saw: a column in RLlib's episodes, so that regularizers begin there.

`AttackedEpisodes` notes what it replaces, in the data that RLlib's connectors share. This module-to-env piece
adds it to what RLlib keeps of each decision, as if the module had given it, and RLlib's learner pipeline
makes a column of it. Where nobody was attacked it is the observation itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2

from marl_aajr.rllib.internals.algorithms import connectors_made
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS


def agent_of(episode: Any) -> tuple[Any, Any]:
    """The key of an agent in an episode, or of an episode of a single agent."""
    return episode.multi_agent_episode_id or episode.id_, episode.agent_id


class CleanObservations(ConnectorV2):
    """Adds the column, in training."""

    def __call__(
        self,
        *,
        batch: dict[str, Any],
        episodes: list[Any],
        shared_data: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        noted = None if shared_data is None else shared_data.pop(CLEAN_OBS, None)
        if noted is None:
            return batch
        for one in self.single_agent_episode_iterator(episodes):
            # Of agents that have just ended RLlib still has an observation, and takes nothing any more.
            if one.is_done:
                continue
            true = noted.get(agent_of(one))
            # An episode of a single agent that begins with the next step has no decision to keep it beside.
            if true is None and one.is_reset:
                true = one.get_observations(-1)
            self.add_batch_item(batch, CLEAN_OBS, true, single_agent_episode=one)
        return batch


@dataclass(frozen=True)
class WithCleanObservations:
    """`module_to_env_connector` of a configuration, with the piece behind those that were there."""

    before: Callable[..., Any] | None

    def __call__(self, env: Any = None, spaces: Any = None) -> list[ConnectorV2]:
        return [*connectors_made(self.before, env, spaces), CleanObservations()]
