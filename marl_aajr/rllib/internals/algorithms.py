"""Private parts of RLlib's configurations, registries and connectors; errors that RLlib only logs, raised."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPO
from ray.rllib.algorithms.impala import IMPALA
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors import env_to_module
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils import force_list
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from marl_aajr.core.checks import NonFiniteError


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


def register_creator(name: str, creator: Callable[..., Any]) -> None:
    """`register_env`, also for a process that has connected to a running cluster once more.

    Ray keeps the job of the first connection, while workers look up what the job of theirs has registered.
    """
    if ray.is_initialized():
        _global_registry._prefix = ray.get_runtime_context().get_job_id()
    register_env(name, creator)


def registered_creator(name: str) -> Any:
    """The creator that `register_env` got under a name; None if it got none."""
    known = _global_registry.contains(ENV_CREATOR, name)
    return _global_registry.get(ENV_CREATOR, name) if known else None


def foreign_env_to_module(pipeline: Any, *known: type) -> list[str]:
    """Names of the pieces in an env-to-module pipeline that are neither RLlib's defaults nor `known`."""
    defaults = (
        env_to_module.AddObservationsFromEpisodesToBatch,
        env_to_module.AddTimeDimToBatchAndZeroPad,
        env_to_module.AddStatesFromEpisodesToBatch,
        env_to_module.AgentToModuleMapping,
        env_to_module.BatchIndividualItems,
        env_to_module.NumpyToTensor,
    )
    expected = (*defaults, *known)
    return [type(piece).__name__ for piece in pipeline.connectors if not isinstance(piece, expected)]


def structures_before_flattening(algorithm: Algorithm) -> list[Any]:
    """The nested spaces of agents' observations, as they were before RLlib's connector flattened them."""
    group = algorithm.env_runner_group
    found = group.foreach_env_runner(structures_of) if group is not None else []
    return next((structures for structures in found if structures), [])


def agent_ids(algorithm: Algorithm) -> list[Any]:
    """The environment's own keys of all agents; none in an environment of a single agent."""
    group = algorithm.env_runner_group
    found = group.foreach_env_runner(agent_ids_of) if group is not None else []
    return next((ids for ids in found if ids), [])


def agent_ids_of(runner: Any) -> list[Any]:
    """The same of one env runner's; none where it has no environment."""
    env = getattr(runner, "env", None)
    if env is None or not isinstance(runner, MultiAgentEnvRunner):
        return []
    return list(env.envs[0].unwrapped.possible_agents)


def connectors_of(runner: Any) -> list[Any]:
    """The pieces of an env runner's env-to-module pipeline, in order."""
    return list(getattr(getattr(runner, "_env_to_module", None), "connectors", ()))


def structures_of(runner: Any) -> list[Any]:
    """The nested spaces of the agents' observations in one env runner; see above."""
    pipeline = getattr(runner, "_env_to_module", None)
    space = getattr(getattr(runner, "env", None), "single_observation_space", None)
    if pipeline is None or space is None:
        return []
    several = isinstance(runner, MultiAgentEnvRunner)
    structure: Any = get_base_struct_from_space(space)
    for piece in pipeline.connectors:
        if isinstance(piece, FlattenObservations):
            structure = piece._input_obs_base_struct
    return list(structure.values()) if several else [structure]


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


def env_to_module_connector(config: AlgorithmConfig) -> Any:
    """The function that makes a configuration's own env-to-module connectors; None where it has none."""
    return config._env_to_module_connector


def module_to_env_connector(config: AlgorithmConfig) -> Any:
    """What the user gave as `module_to_env_connector`; None: nothing."""
    return config._module_to_env_connector


def connectors_made(function: Callable[..., Any] | None, env: Any, *others: Any) -> list[ConnectorV2]:
    """What a configuration's function makes, called as RLlib calls it; None makes nothing.

    A function of the old signature is given the environment alone.
    """
    if function is None:
        return []
    try:
        given = function(env, *others)
    except TypeError as error:
        if "positional argument" not in str(error):
            raise
        given = function(env)
    return [given] if isinstance(given, ConnectorV2) else list(given)


def runner_of_connectors(env: Any) -> EnvRunner | None:
    """The env runner that makes the connectors of its environment just now, of those who called this.

    RLlib gives the function that makes connectors the environment and nothing of the runner. A callback could
    introduce them, but a user's own would take its place.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, EnvRunner) and getattr(caller, "env", None) is env:
            return caller
        frame = frame.f_back
    return None


def custom_connectors(config: AlgorithmConfig) -> dict[str, Any]:
    """The connector settings of a configuration that are set, by name."""
    names = ("module_to_env_connector", "learner_connector")
    return {name: given for name in names if (given := getattr(config, f"_{name}")) is not None}


def stale_connector_settings(config: AlgorithmConfig) -> str:
    """Names of the settings that the learner's connector has otherwise than the configuration."""
    settings = getattr(config._learner_connector, "keywords", {})
    return " and ".join(
        name.rstrip("_")
        for name in ("gamma", "lambda_")
        if name in settings and settings[name] != getattr(config, name)
    )


_ANSWER_SECONDS = 10.0

_LOGGER = logging.getLogger("marl_aajr")


def _refuse_gradient(record: logging.LogRecord) -> bool:
    if record.getMessage().startswith("Gradients "):
        raise NonFiniteError("a gradient of the loss is NaN or infinite")
    return True


def _raise_actor_error(record: logging.LogRecord) -> bool:
    error = sys.exc_info()[1]
    if isinstance(error, RayTaskError):
        raise error.cause from None
    if isinstance(error, RayError):
        _LOGGER.warning("lost a process of the run: %s", str(error).splitlines()[0])
    return False


_ALARMS = {
    "ray.rllib.core.learner.torch.torch_learner": _refuse_gradient,
    "ray.rllib.utils.actor_manager": _raise_actor_error,
}


@contextmanager
def errors_raise() -> Iterator[None]:
    """Within this block, what RLlib only logs is raised in this process.

    `TorchLearner.apply_gradients` warns about a gradient that is not finite and goes on with NaN → 0 and
    Inf → 3.4e38; the metrics, which keep the last minibatch only, may never show it.

    `FaultTolerantActorManager` treats an error *in* an env runner, such as a broken environment, like the
    loss of the runner: it logs it, restarts, and would do so for ever. Lost runners are still restarted.
    """
    levels = {name: logging.getLogger(name).level for name in _ALARMS}
    _sound_alarms()
    try:
        yield
    finally:
        for name, alarm in _ALARMS.items():
            logging.getLogger(name).removeFilter(alarm)
            logging.getLogger(name).setLevel(levels[name])


def remote_errors_raise(algorithm: Algorithm) -> None:
    """`errors_raise` in the processes of remote learners, for their lifetime."""
    if algorithm.config.num_learners > 0:
        algorithm.learner_group.foreach_learner(lambda _: _sound_alarms())


def _sound_alarms() -> None:
    for name, alarm in _ALARMS.items():
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(alarm)


def keep_thread_errors(thread: Any) -> list[Exception]:
    """The place in which the thread of a learner leaves its errors.

    IMPALA and APPO update in a thread. An error there ends it, and `update` waits for its results for ever.
    With this the thread goes on, and does nothing any more.
    """
    errors: list[Exception] = []
    update = thread._update_method

    def guarded(**kwargs: Any) -> None:
        if not errors:
            try:
                update(**kwargs)
            except Exception as error:
                errors.append(error)

    thread._update_method = guarded
    return errors


def dead_learners(algorithm: Algorithm) -> list[str]:
    """For each learner process that is gone, Ray's last word on it.

    RLlib takes the results of those that are left; where none is, that is an IndexError.
    """
    found = []
    for worker in algorithm.learner_group._workers or ():
        try:
            ray.get(worker.__ray_ready__.remote(), timeout=_ANSWER_SECONDS)
        except GetTimeoutError:
            pass  # Busy, not dead.
        except RayError as error:
            # Its last line; after the cause come guesses at it.
            found.append(str(error).strip().splitlines()[-1].partition(" Some common causes")[0])
    return found
