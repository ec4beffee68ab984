"""Private parts of RLlib's learners: which loss is differentiated, what is adapted, how a step is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils import metrics as keys
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor
from torch import distributed as dist

from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.rllib.internals.algorithms import keep_thread_errors


def backends_for(learner: TorchLearner) -> tuple[Backend, ...]:
    """The Jacobian backends that are safe in this learner.

    IMPALA and APPO update in a thread of their own, and PyTorch's dual levels are process-global: forward
    mode would meet whatever else the process differentiates.
    """
    if isinstance(learner, IMPALATorchLearner):
        return tuple(name for name in BACKENDS if name != "forward")
    return BACKENDS


def add_to_policy_loss(learner: TorchLearner, module_id: str, term: Tensor) -> None:
    """SAC differentiates losses that it keeps by optimizer, not the ones that `compute_losses` returns."""
    if isinstance(learner, SACTorchLearner):
        losses = learner._temp_losses
        losses[(module_id, POLICY_LOSS_KEY)] = losses[(module_id, POLICY_LOSS_KEY)] + term


def check_gradients_are_served(learner: type[TorchLearner]) -> None:
    """Raise `ValueError` for a learner that would differentiate something other than our loss."""
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


def learner_index(learner: Learner) -> int:
    """The index of this learner among all of them."""
    return int(learner._learner_index)


def in_step(learner: TorchLearner) -> bool:
    """Whether several learners take each step together, each with its part of one minibatch.

    Those of IMPALA and APPO may hold rows of different modules: RLlib averages whatever gradients there are.
    """
    return learner.config.num_learners > 1 and not isinstance(learner, IMPALATorchLearner)


def all_sum(number: Tensor) -> Tensor:
    """The sum of a number over all learners; each must call this, equally often."""
    total = number.clone()
    dist.all_reduce(total)
    return total


def check_all_have_rows(learner: Learner, batch: Mapping[str, Any]) -> None:
    """Raise where, by their shares of a batch, some learners would wait for ever for the gradient of another.

    All of them must call this, equally often.

    Raises:
        ValueError: in every learner, if one has no row of a module of which another has some.
    """
    names = sorted(learner.module.keys())
    own = torch.tensor([float(name in batch) for name in names], device=learner.device)
    learners = dist.get_world_size()
    for name, count in zip(names, all_sum(own).tolist(), strict=True):
        if 0 < count < learners:
            raise ValueError(
                f"expected rows of module {name!r} for each of the {learners} learners, got some for "
                f"{count:.0f} of them only, and these would wait for the others for ever; collect more "
                "episodes for an update, or set num_learners=0"
            )


_COEFFICIENTS = ("curr_kl_coeffs_per_module", "curr_log_alpha")


def adapted(learner: TorchLearner) -> dict[str, dict[str, float]]:
    """The adapted values that a learner leaves out of its state, by name and module."""
    values = {
        name: {
            module_id: float(x)
            for module_id, x in getattr(learner, name).items()
            if module_id in learner.module
        }
        for name in _COEFFICIENTS
        if hasattr(learner, name)
    }
    schedules = _entropy_schedules(learner)
    return values | {"entropy": {name: float(one.get_current_value()) for name, one in schedules.items()}}


def adapt(learner: TorchLearner, values: Mapping[str, Mapping[str, float]]) -> None:
    """Put back what `adapted` found, of the modules that are here: RLlib restores no others."""
    for name in _COEFFICIENTS:
        for module_id, value in values.get(name, {}).items():
            if module_id in learner.module:
                getattr(learner, name)[module_id].data.fill_(value)
    saved = values.get("entropy", {})
    for module_id, schedule in _entropy_schedules(learner).items():
        if module_id in saved and schedule.use_schedule:
            schedule.get_current_value().data.fill_(saved[module_id])


def _entropy_schedules(learner: TorchLearner) -> dict[str, Scheduler]:
    schedules = getattr(learner, "entropy_coeff_schedulers_per_module", None)
    return {} if schedules is None else {name: schedules[name] for name in learner.module.keys()}  # noqa: SIM118


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
    """Begin an update: its train batch, through the connectors, on the device, without frozen modules."""
    learner._weights_seq_no += 1
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


def log_trained(
    learner: Learner, batch: MultiAgentBatch, trained: Mapping[str, int], *, minibatches: int
) -> None:
    """Logs once what RLlib logs for each minibatch, given the steps of each module in all of them."""
    learner._log_metrics(batch=batch)
    log = learner.metrics.log_value
    for module_id, count in trained.items():
        log((module_id, keys.WEIGHTS_SEQ_NO), learner._weights_seq_no, window=1)
        log((module_id, keys.MODULE_TRAIN_BATCH_SIZE_MEAN), count / minibatches, reduce="mean")
        log((module_id, keys.NUM_MODULE_STEPS_TRAINED), count, reduce="sum")
        lifetime = (module_id, keys.NUM_MODULE_STEPS_TRAINED_LIFETIME)
        log(lifetime, count, reduce="lifetime_sum", with_throughput=True)
    rows, steps = sum(trained.values()), batch.env_steps() * minibatches
    for key, count, reduce in (
        (keys.NUM_MODULE_STEPS_TRAINED, rows, "sum"),
        (keys.NUM_ENV_STEPS_TRAINED, steps, "sum"),
        (keys.NUM_MODULE_STEPS_TRAINED_LIFETIME, rows, "lifetime_sum"),
        (keys.NUM_ENV_STEPS_TRAINED_LIFETIME, steps, "lifetime_sum"),
    ):
        log((keys.ALL_MODULES, key), count, reduce=reduce, with_throughput=True)


class OpenTorchLearner(TorchLearner):
    """In front of any torch learner of RLlib: public names for what ours add to.

    Attributes:
        trained: ids of the modules that updates train, of those that the configuration trains; None: all.
    """

    trained: Collection[str] | None = None

    def should_module_be_updated(self, module_id: str, multi_agent_batch: Any = None) -> bool:
        its_turn = self.trained is None or module_id in self.trained
        return its_turn and bool(super().should_module_be_updated(module_id, multi_agent_batch))

    def batch_is_made(self, batch: MultiAgentBatch) -> None:
        """Called with the train batch of each update; not where minibatches come from Ray Data."""

    def before_step(self, batch: dict[str, Any]) -> None:
        """Called with each minibatch, before any module sees it."""

    def measured_kl(self, module_id: str, value: Any) -> Any:
        """The KL divergence by which PPO adapts a module's coefficient, given what was measured here."""
        return value

    def saves(self, name: str, components: Any, not_components: Any) -> bool:
        """Whether a component of the state is among those asked for."""
        return bool(self._check_component(name, components, not_components))

    def _make_batch_if_necessary(self, **kwargs: Any) -> Any:
        batch = super()._make_batch_if_necessary(**kwargs)
        self.batch_is_made(batch)
        return batch

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        self.before_step(batch)
        return super()._update(batch, **kwargs)

    def _update_module_kl_coeff(self, *, module_id: str, config: Any, **measured: Any) -> None:
        if self.trained is not None and module_id not in self.trained:
            return  # Nothing was measured: RLlib hands in NaN, and would warn of it.
        # PPO's hands the measured value in, APPO's looks it up.
        values = {name: self.measured_kl(module_id, value) for name, value in measured.items()}
        super()._update_module_kl_coeff(module_id=module_id, config=config, **values)


class OpenPPOTorchLearner(PPOTorchLearner):
    """RLlib's PPO learner, whose step from one minibatch to new weights is a public method."""

    def train_minibatch(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """One `minibatch_step`, through all classes in front of this one; what it returns."""
        fwd_out, losses, _ = self._update(batch)
        return fwd_out, losses

    def minibatch_step(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """Forward pass, losses, gradients and a step of the optimizers; returns the first two."""
        raise NotImplementedError

    def _uncompiled_update(self, batch: dict[str, Any], **_: Any) -> tuple[Any, Any, Any]:
        return *self.minibatch_step(batch), {}


ADAPTED_KEY = "marl_aajr_adapted"


class ResumableLearnerMixin(OpenTorchLearner):
    """A learner whose checkpoints are complete; training is the learner's own, bit for bit.

    RLlib's checkpoints leave out what a learner has adapted (`adapted`); this mixin adds it to the state.

    Of several learners RLlib saves the first, and lets each adapt a KL coefficient of its own: restored, all
    have the first one's. What goes wrong in a learner's own thread is raised by `update`.
    """

    def build(self) -> None:
        super().build()
        thread = getattr(self, "_learner_thread", None)
        self._thread_errors = [] if thread is None else keep_thread_errors(thread)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        result = super().update(*args, **kwargs)
        if self._thread_errors:
            raise self._thread_errors[0]
        return result

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        # Weights are synchronised by the same call, which must stay small.
        if self.saves(ADAPTED_KEY, components, not_components):
            state[ADAPTED_KEY] = adapted(self)
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        adapt(self, state.get(ADAPTED_KEY, {}))


@cache
def resumable_learner_class(base: type[TorchLearner]) -> type[TorchLearner]:
    """`base` with `ResumableLearnerMixin` in front; the same class for the same base."""
    if issubclass(base, ResumableLearnerMixin):
        return base
    return type(f"Resumable{base.__name__}", (ResumableLearnerMixin, base), {"__doc__": base.__doc__})
