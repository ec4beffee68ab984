"""What RLlib's configurations, registries and pipelines do not tell in public."""

from __future__ import annotations

import tempfile
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPO
from ray.rllib.algorithms.impala import IMPALA
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AgentToModuleMapping,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.utils import force_list
from ray.tune.registry import ENV_CREATOR, _global_registry


class _NoResults(Algorithm):
    """Makes no folder in ~/ray_results: a run has its own."""

    def _setup_logdir(self) -> None:
        self._logdir = tempfile.gettempdir()


class RunPPO(_NoResults, PPO):
    """RLlib's PPO for a run."""


class RunAPPO(_NoResults, APPO):
    """RLlib's APPO for a run."""


class RunIMPALA(_NoResults, IMPALA):
    """RLlib's IMPALA for a run."""


def registered_creator(name: str) -> Any:
    """What was given to `register_env` under a name; None if nothing was."""
    known = _global_registry.contains(ENV_CREATOR, name)
    return _global_registry.get(ENV_CREATOR, name) if known else None


_ENV_TO_MODULE_DEFAULTS = (
    AddObservationsFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    AgentToModuleMapping,
    BatchIndividualItems,
    NumpyToTensor,
)


def foreign_env_to_module(pipeline: Any, *known: type) -> list[str]:
    """Names of the pieces in an env-to-module pipeline that are neither RLlib's defaults nor `known`."""
    expected = (*_ENV_TO_MODULE_DEFAULTS, *known)
    return [type(piece).__name__ for piece in pipeline.connectors if not isinstance(piece, expected)]


_EPISODE_CALLBACKS = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end")


def episode_callbacks(config: AlgorithmConfig, *known: type) -> list[str]:
    """Names of the callbacks on episodes that a configuration has, but for instances of `known`."""
    functions = {name: force_list(getattr(config, f"callbacks_{name}")) for name in _EPISODE_CALLBACKS}
    names = {name for name, given in functions.items() if any(not isinstance(f, known) for f in given)}
    for cls in force_list(config.callbacks_class):
        names |= {
            name for name in _EPISODE_CALLBACKS if getattr(cls, name) is not getattr(RLlibCallback, name)
        }
    return sorted(names)


def custom_connectors(config: AlgorithmConfig) -> dict[str, Any]:
    """The connector settings of a configuration that are set, by name."""
    names = ("module_to_env_connector", "learner_connector")
    return {name: given for name in names if (given := getattr(config, f"_{name}")) is not None}


def stale_connector_settings(config: AlgorithmConfig) -> str:
    """Names of the settings that the learner's connector has otherwise than the configuration."""
    settings = getattr(config._learner_connector, "settings", {})
    return " and ".join(
        name.rstrip("_")
        for name in ("gamma", "lambda_")
        if name in settings and settings[name] != getattr(config, name)
    )
