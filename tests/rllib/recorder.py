"""RLlib's runners under attack, and how far what agents saw was from what was true."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from marl_aajr.rllib.plugin.attacked_episodes import AttackedEpisodes
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer


class Recorder(ConnectorV2):
    """Keeps what the environment gave to each agent of an episode, in order; stands before the attack."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.true: dict[tuple[Any, Any], list[np.ndarray]] = {}
        pieces = runner._env_to_module.connectors
        pieces.insert(pieces.index(attacked_episodes(runner)), self)

    def __call__(self, *, batch: Any, episodes: list[Any], **_: Any) -> Any:
        for one in self.single_agent_episode_iterator(episodes):
            self.true.setdefault(key(one), []).append(np.array(one.get_observations(-1)))
        return batch


def attacked_episodes(runner: Any) -> AttackedEpisodes:
    return next(p for p in runner._env_to_module.connectors if isinstance(p, AttackedEpisodes))


def filter_of(runner: Any) -> ObservationNormalizer:
    return next(p for p in runner._env_to_module.connectors if isinstance(p, ObservationNormalizer))


def key(one: Any) -> tuple[Any, Any]:
    return one.multi_agent_episode_id or one.id_, one.agent_id


def runner_of(config: AlgorithmConfig, *, index: int = 0) -> Any:
    kind = MultiAgentEnvRunner if config.is_multi_agent else SingleAgentEnvRunner
    config = config.copy(copy_frozen=False)
    torch.manual_seed(0)
    return kind(config=config, worker_index=index)


def chunks(runner: Any, **request: Any) -> list[Any]:
    """Single-agent chunks of one sample."""
    parts = [getattr(e, "agent_episodes", {"": e}).values() for e in runner.sample(**request)]
    return [one for part in parts for one in part]


def moved(runner: Any, recorder: Recorder, **request: Any) -> np.ndarray:
    """How far what is kept is from the truth, of all observations, the last of each chunk included."""
    return np.concatenate([size(one, recorder) for one in chunks(runner, num_timesteps=24, **request)])


def size(one: Any, recorder: Recorder) -> np.ndarray:
    """The same of one chunk, `[T + 1]`."""
    kept = one.get_observations()
    assert len(kept) == len(one) + 1
    true = recorder.true[key(one)][one.t_started :]
    return np.abs(kept - np.stack(true[: len(kept)])).max(-1)
