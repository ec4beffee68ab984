"""Every private or unannotated RLlib name that this project touches, in one place.

Checked against Ray 2.60. When Ray is upgraded, this is the file to read again.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from ray.exceptions import RayError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AgentToModuleMapping,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead, TorchMLPHead
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.numpy import MAX_LOG_NN_OUTPUT, MIN_LOG_NN_OUTPUT
from ray.tune.registry import ENV_CREATOR, _global_registry
from torch import Tensor, nn

from marl_aajr.jacobian import BACKENDS, Backend
from marl_aajr.numerics import NonFiniteError
from marl_aajr.rllib.observation_filter import ObservationNormalizer
from marl_aajr.victims.layers import ClipLogStd, FreeLogStd

_LOGGER = logging.getLogger("marl_aajr")


def actor_forward(module: TorchRLModule) -> tuple[Callable[[dict[str, Any]], Tensor], bool]:
    """How to get a module's distribution inputs from a train batch, and whether it reads OBS alone.

    RLlib's default PPO module runs its critic in every ``forward_train``, and its SAC module five more
    networks. The inner maximisation calls the policy several times per minibatch and needs the actor only,
    so it is called by its parts where nobody has overridden how they are put together.
    """
    if isinstance(module, DefaultSACTorchRLModule):
        return lambda batch: _clip_log_std(module, module.forward_inference(batch)), True
    default = DefaultPPOTorchRLModule
    untouched = (
        isinstance(module, default)
        and type(module)._forward_train is default._forward_train
        and type(getattr(module, "encoder", None)) is TorchActorCriticEncoder
        and not module.encoder.config.shared
    )
    if untouched:
        return lambda batch: module.pi(module.encoder.actor_encoder(batch)[ENCODER_OUT]), True
    return lambda batch: module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], False


def _clip_log_std(module: DefaultSACTorchRLModule, out: dict[str, Any]) -> Tensor:
    """The inputs as RLlib's squashed Gaussian reads them: log σ clipped."""
    inputs = out[Columns.ACTION_DIST_INPUTS]
    if not issubclass(module.get_train_action_dist_cls(), TorchSquashedGaussian):
        return inputs
    mean, log_std = inputs.chunk(2, -1)
    return torch.cat([mean, log_std.clamp(MIN_LOG_NN_OUTPUT, MAX_LOG_NN_OUTPUT)], -1)


def actor_network(module: TorchRLModule) -> nn.Module:
    """The actor's network alone, for constraints on its weights.

    Raises:
        ValueError: the actor shares layers with the critic, or is not known here.
    """
    encoder = getattr(getattr(module, "encoder", None), "actor_encoder", None)
    if isinstance(module, DefaultPPOTorchRLModule) and encoder is not None:
        return nn.ModuleList([encoder, module.pi])
    if isinstance(module, DefaultSACTorchRLModule):
        return nn.ModuleList([module.pi_encoder, module.pi])
    if isinstance(actor := getattr(module, "actor", None), nn.Module):
        return actor
    raise ValueError(
        f"expected a module with an actor of its own, got {type(module).__name__}; set "
        "vf_share_layers=False, or keep the actor's network in an attribute 'actor'"
    )


def backends_for(learner: TorchLearner) -> tuple[Backend, ...]:
    """The Jacobian backends that are safe in this learner.

    IMPALA and APPO update in a thread of their own, and PyTorch's dual levels are process-global: forward
    mode would meet whatever else the process differentiates.
    """
    if isinstance(learner, IMPALATorchLearner):
        return tuple(name for name in BACKENDS if name != "forward")
    return BACKENDS


def add_to_policy_loss(learner: TorchLearner, module_id: str, term: Tensor) -> None:
    """SAC differentiates losses that it keeps by optimizer, not the ones that ``compute_losses`` returns."""
    if isinstance(learner, SACTorchLearner):
        losses = learner._temp_losses
        losses[(module_id, POLICY_LOSS_KEY)] = losses[(module_id, POLICY_LOSS_KEY)] + term


def check_gradients_are_served(learner: type[TorchLearner]) -> None:
    """Raise ``ValueError`` for a learner that would differentiate something other than our loss."""
    served = (
        TorchLearner.compute_gradients,
        IMPALATorchLearner.compute_gradients,
        SACTorchLearner.compute_gradients,
    )
    if learner.compute_gradients not in served:
        raise ValueError(
            "expected a learner with the compute_gradients of RLlib's TorchLearner, IMPALA, APPO or SAC, "
            f"got {learner.__name__} with its own; a term added to the loss might never be differentiated"
        )


class RunPPO(PPO):
    """RLlib's PPO, which does not make a folder in ~/ray_results: a run has its own."""

    def _setup_logdir(self) -> None:
        self._logdir = tempfile.gettempdir()


def learner_index(learner: Learner) -> int:
    """Which of the learners this is."""
    return int(learner._learner_index)


def learner_extras(algorithm: Algorithm) -> dict[str, float]:
    """What PPO's learner adapts and leaves out of its state: the KL coefficient of each module."""

    def read(learner: Any) -> dict[str, float]:
        return {name: float(value) for name, value in learner.curr_kl_coeffs_per_module.items()}

    (first, *_) = algorithm.learner_group.foreach_learner(read)
    return dict(first.get())


def restore_learner_extras(algorithm: Algorithm, kl: Mapping[str, float], *, env_steps: int) -> None:
    """Put back :func:`learner_extras`, and the entropy coefficient that its schedule has come to.

    RLlib moves schedules only after an update: without this, the first one after a restore would run with
    the values of step 0.
    """

    def write(learner: Any) -> None:
        for name, value in kl.items():
            learner.curr_kl_coeffs_per_module[name].data.fill_(value)
        for name in learner.module.keys():  # noqa: SIM118 - a MultiRLModule is no mapping
            learner.entropy_coeff_schedulers_per_module[name].update(timestep=env_steps)

    for result in algorithm.learner_group.foreach_learner(write):
        result.get()


def observation_normalizer(algorithm: Algorithm) -> ObservationNormalizer | None:
    """The merged observation filter of the algorithm's runners."""
    pipeline = algorithm.env_runner._env_to_module
    found = [piece for piece in pipeline.connectors if isinstance(piece, ObservationNormalizer)]
    return found[0] if found else None


def actor_layers(module: DefaultPPOTorchRLModule) -> nn.Sequential:
    """The actor of RLlib's default PPO module as a stack of plain layers, sharing its parameters.

    Raises:
        ValueError: an encoder or a head other than RLlib's MLPs.
    """
    encoder, head = getattr(module.encoder, "actor_encoder", None), module.pi
    body = getattr(getattr(encoder, "net", None), "mlp", None)
    if not isinstance(body, nn.Sequential) or type(head) not in (TorchMLPHead, TorchFreeLogStdMLPHead):
        raise ValueError(
            f"expected RLlib's MLP encoder and head, got {type(encoder).__name__} and {type(head).__name__}; "
            "only feed-forward policies on flat observations can be exported"
        )
    layers = [*body, *head.net.mlp]
    bound = float(head.log_std_clip_param) if head.clip_log_std else None
    if isinstance(head, TorchFreeLogStdMLPHead):
        free = FreeLogStd(len(head.log_std), bound)
        free.log_std = head.log_std
        layers.append(free)
    elif bound is not None:
        layers.append(ClipLogStd(bound))
    return nn.Sequential(*layers)


class _NonFiniteGradient(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Gradients "):
            raise NonFiniteError("a gradient of the loss is NaN or infinite")
        return True


class _ActorError(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, RayTaskError):
            raise error.cause from None
        if isinstance(error, RayError):
            _LOGGER.warning("lost a process of the run, Ray restarts it: %s", str(error).splitlines()[0])
        return False


_ALARMS: dict[str, logging.Filter] = {
    "ray.rllib.core.learner.torch.torch_learner": _NonFiniteGradient(),
    "ray.rllib.utils.actor_manager": _ActorError(),
}


@contextmanager
def errors_raise() -> Iterator[None]:
    """Within this block, what RLlib only logs is raised in this process.

    ``TorchLearner.apply_gradients`` warns about a gradient that is not finite and goes on with NaN → 0 and
    Inf → 3.4e38; the metrics, which keep the last minibatch only, may never show it.

    ``FaultTolerantActorManager`` treats an error *in* an env runner, such as a broken environment, like the
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
    """:func:`errors_raise` in the processes of remote learners, for their lifetime."""
    if algorithm.config.num_learners > 0:
        algorithm.learner_group.foreach_learner(lambda _: _sound_alarms())


def _sound_alarms() -> None:
    for name, alarm in _ALARMS.items():
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(alarm)


def plain_actor(module: TorchRLModule) -> Callable[[Tensor], Tensor] | None:
    """The layers between observations and distribution inputs, where nobody has changed how RLlib uses them.

    RLlib's way from ``forward_exploration`` to the first layer takes longer than a small network.
    """
    default = DefaultPPOTorchRLModule
    methods = ("_forward", "_forward_exploration", "_forward_inference")
    if not isinstance(module, default) or any(
        getattr(type(module), name) is not getattr(default, name) for name in methods
    ):
        return None
    if type(getattr(module, "encoder", None)) is not TorchActorCriticEncoder or module.is_stateful():
        return None
    try:
        return actor_layers(module)
    except ValueError:
        return None


def registered_creator(name: str) -> Any:
    """What was given to ``register_env`` under a name; None if nothing was."""
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
    """Names of the pieces in an env-to-module pipeline that are neither RLlib's defaults nor ``known``."""
    expected = (*_ENV_TO_MODULE_DEFAULTS, *known)
    return [type(piece).__name__ for piece in pipeline.connectors if not isinstance(piece, expected)]


def make_environment_callback(runner: EnvRunner, context: EnvContext) -> None:
    """Call what the user wants called when an environment was built."""
    make_callback(
        "on_environment_created",
        callbacks_objects=runner._callbacks,
        callbacks_functions=runner.config.callbacks_on_environment_created,
        kwargs={
            "env_runner": runner,
            "metrics_logger": runner.metrics,
            "env": runner.env.unwrapped,
            "env_context": context,
        },
    )


_EPISODE_CALLBACKS = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end")


def episode_callbacks(config: AlgorithmConfig, *known: type) -> list[str]:
    """Names of the callbacks on episodes that a configuration has, but for instances of ``known``."""
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


def plain_networks(module: TorchRLModule) -> tuple[nn.Sequential, nn.Sequential] | None:
    """The actor and the critic of RLlib's default PPO module as plain layers, sharing its parameters.

    None where somebody has changed how RLlib puts them together, or where they are not MLPs of their own.
    """
    default = DefaultPPOTorchRLModule
    methods = ("_forward_train", "compute_values")
    if not isinstance(module, default) or any(
        getattr(type(module), name) is not getattr(default, name) for name in methods
    ):
        return None
    if type(getattr(module, "encoder", None)) is not TorchActorCriticEncoder or module.is_stateful():
        return None
    body = getattr(getattr(getattr(module.encoder, "critic_encoder", None), "net", None), "mlp", None)
    head = getattr(getattr(module.vf, "net", None), "mlp", None)
    if not isinstance(body, nn.Sequential) or not isinstance(head, nn.Sequential):
        return None
    try:
        return actor_layers(module), nn.Sequential(*body, *head)
    except ValueError:
        return None


def optimizers(learner: TorchLearner) -> list[tuple[torch.optim.Optimizer, list[Any]]]:
    """All optimizers, each with its parameters."""
    return [(optimizer, list(params)) for optimizer, params in learner._optimizer_parameters.items()]


def plain_optimization(config: AlgorithmConfig) -> bool:
    """Whether nobody asked for gradient scalers, torch's schedulers or skipped updates."""
    return not (
        config._torch_grad_scaler_class
        or config._torch_lr_scheduler_classes
        or config.torch_skip_nan_gradients
    )


def train_batch(learner: Learner, training_data: TrainingData) -> MultiAgentBatch:
    """What the learner is to train on: through its connectors, on its device, without frozen modules."""
    training_data.validate()
    training_data.solve_refs()
    batch = learner._make_batch_if_necessary(training_data=training_data)
    trained = {
        module_id: rows
        for module_id, rows in batch.policy_batches.items()
        if learner.should_module_be_updated(module_id, batch)
    }
    unknown = sorted(set(trained) - set(learner.module.keys()))
    if unknown:
        raise ValueError(f"expected rows of the learner's modules only, got some of {', '.join(unknown)}")
    return MultiAgentBatch(trained, env_steps=batch.env_steps())


def begin_update(learner: Learner) -> None:
    """Count one more version of the weights."""
    learner._weights_seq_no += 1


def log_trained(learner: Learner, batch: MultiAgentBatch, *, size: int, minibatches: int) -> None:
    """What RLlib logs of every minibatch, once for all of them."""
    learner._log_metrics(batch=batch)
    log = learner.metrics.log_value
    for module_id in batch.policy_batches:
        log((module_id, WEIGHTS_SEQ_NO), learner._weights_seq_no, window=1)
        log((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), size, reduce="mean")
        log((module_id, NUM_MODULE_STEPS_TRAINED), size * minibatches, reduce="sum")
        lifetime = (module_id, NUM_MODULE_STEPS_TRAINED_LIFETIME)
        log(lifetime, size * minibatches, reduce="lifetime_sum", with_throughput=True)
    rows, steps = size * minibatches * len(batch.policy_batches), batch.env_steps() * minibatches
    for key, count in ((NUM_MODULE_STEPS_TRAINED, rows), (NUM_ENV_STEPS_TRAINED, steps)):
        log((ALL_MODULES, key), count, reduce="sum", with_throughput=True)
    for key, count in ((NUM_MODULE_STEPS_TRAINED_LIFETIME, rows), (NUM_ENV_STEPS_TRAINED_LIFETIME, steps)):
        log((ALL_MODULES, key), count, reduce="lifetime_sum", with_throughput=True)


def current_entropy_coeff(learner: PPOTorchLearner, module_id: str) -> float:
    """What the schedule of a module's entropy bonus has come to."""
    return float(learner.entropy_coeff_schedulers_per_module[module_id].get_current_value())


def stale_connector_settings(config: AlgorithmConfig) -> str:
    """Names of the settings that the learner's connector has otherwise than the configuration."""
    settings = getattr(config._learner_connector, "settings", {})
    return " and ".join(
        name.rstrip("_")
        for name in ("gamma", "lambda_")
        if name in settings and settings[name] != getattr(config, name)
    )
