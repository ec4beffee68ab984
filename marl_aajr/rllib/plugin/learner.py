"""What several learners have to agree on; each function is called by all of them, and as often."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from marl_aajr.regularizers.sample import PolicyLoss, ppo_policy_loss
from marl_aajr.rllib.internals import (
    OpenTorchLearner,
    adapt,
    adapted,
    add_to_policy_loss,
    backends_for,
    in_step,
    keep_thread_errors,
    learner_index,
)
from marl_aajr.rllib.plugin.agreement import add_up, check_all_have_rows, everyones
from marl_aajr.rllib.plugin.module_policy import snapshot
from marl_aajr.rllib.plugin.regularized_module import RegularizedModule, Report

# MERGED: resumable.py; its docstring belongs into that of this module


ADAPTED_KEY = "marl_aajr_adapted"


class ResumableLearnerMixin(OpenTorchLearner):
    """Adds them to the learner's state; training is the learner's own, bit for bit.

    Of several learners RLlib saves the first, and lets each adapt a KL coefficient of its own: restored, all
    have the first one's. What goes wrong in a learner's own thread is raised by `update`.
    """

    def build(self) -> None:
        super().build()
        self._thread_errors = keep_thread_errors(self)

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


# MERGED: learner.py; its docstring belongs into that of this module


REGULARIZERS_KEY = "marl_aajr_regularizers"
"""Where `robustify` leaves the regularizers in `config.learner_config_dict`."""

STATE_KEY = "marl_aajr"


class RobustLearnerMixin(ResumableLearnerMixin):
    """Adds each module's regularizer to its loss; see `robust_learner_class`."""

    def build(self) -> None:
        # Learner.build calls hooks that read these.
        self._regularized: dict[str, RegularizedModule] = {}
        self._timestep = 0
        self._updates = 0
        self._agreed = False
        self._clean_batch: dict[str, dict[str, Any]] = {}
        super().build()
        shard = (learner_index(self), self.config.num_learners) if in_step(self) else None
        for module_id, regularizer in self.config.learner_config_dict[REGULARIZERS_KEY].items():
            if module_id not in self.module:
                known = ", ".join(sorted(self.module.keys()))
                raise ValueError(f"expected a regularizer for a module out of {known}; got {module_id!r}")
            self._regularized[module_id] = RegularizedModule(
                module_id,
                regularizer,
                self.module[module_id].unwrapped(),
                policy_loss=self._policy_loss(module_id),
                backends=backends_for(self),
                shard=shard,
            )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        self._timestep = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._timestep)
        self._agreed = not in_step(self)

    def before_step(self, batch: dict[str, Any]) -> None:
        super().before_step(batch)
        if not self._agreed:
            check_all_have_rows(batch, self.module.keys(), device=self.device)
            self._agreed = True
        # RLlib's own action-masking module pops from its batch.
        if any(self._has_part(module_id) for module_id in self._regularized):
            self._clean_batch = snapshot(batch)

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        losses = super().compute_losses(fwd_out=fwd_out, batch=batch)
        self._updates += 1
        for module_id, loss in losses.items():
            if self._has_part(module_id):
                outputs = fwd_out[module_id].get(Columns.ACTION_DIST_INPUTS)
                losses[module_id] = self._regularize(module_id, outputs, loss)
        return losses

    def _regularize(self, module_id: str, outputs: Tensor | None, loss: Tensor) -> Tensor:
        """The loss of a module's minibatch with the regularizer's term."""
        regularized = self._regularized[module_id]
        sample = regularized.sample(self._clean_batch[module_id], outputs)
        own = loss
        if sample.shard is not None and isinstance(self, PPOTorchLearner):
            # PPO's own is a mean over this learner's rows.
            loss = loss * sample.weight
        if self._is_active(module_id):
            key = f"{self.config.seed}/{self._updates}"
            term = regularized.term(sample, own, timestep=self._timestep, key=key)
            add_to_policy_loss(self, module_id, term)
            loss = loss + term
        return loss

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        super().apply_gradients(gradients_dict)
        for regularized in self._regularized.values():
            regularized.constrain_actor(exact=False)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for regularized in self._regularized.values():
            regularized.constrain_actor(exact=True)
        for module_id, report in self._reports().items():
            regularized = self._regularized[module_id]
            regularized.finish(report)
            for name, value in report.metrics.items():
                self.metrics.log_value((module_id, regularized.regularizer.name, name), value, window=1)

    def measured_kl(self, module_id: str, value: Any) -> Any:
        # Each learner measures on its own rows; with coefficients of their own they would drift apart, and a
        # checkpoint holds the first one's.
        if not (in_step(self) and self._has_part(module_id)):
            return value
        total = add_up(torch.tensor(float(value), device=self.device))
        return float(total) / self.config.num_learners

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.saves(STATE_KEY, components, not_components):
            states = {
                module_id: dict(regularized.state) for module_id, regularized in self._regularized.items()
            }
            state[STATE_KEY] = {"updates": self._updates, "timestep": self._timestep, "modules": states}
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if STATE_KEY in state:
            self._updates = state[STATE_KEY]["updates"]
            self._timestep = state[STATE_KEY]["timestep"]
            for module_id, values in state[STATE_KEY]["modules"].items():
                self._regularized[module_id].state = dict(values)

    def _reports(self) -> dict[str, Report]:
        """A report on each module that something was done to, in this update, by any learner."""
        own = {module_id: regularized.report() for module_id, regularized in self._regularized.items()}
        every = everyones(own) if self.config.num_learners > 1 else [own]
        found = {
            module_id: [report for reports in every if (report := reports[module_id]) is not None]
            for module_id in own
        }
        return {module_id: Report.of_all(reports) for module_id, reports in found.items() if reports}

    def _is_active(self, module_id: str) -> bool:
        regularized = self._regularized.get(module_id)
        return regularized is not None and regularized.regularizer.active(self._timestep)

    def _has_part(self, module_id: str) -> bool:
        """Whether the loss of a module is touched."""
        if self._is_active(module_id):
            return True
        regularized = self._regularized.get(module_id)
        return in_step(self) and regularized is not None and regularized.regularizer.constrains

    def _policy_loss(self, module_id: str) -> PolicyLoss | None:
        if not isinstance(self, PPOTorchLearner):
            return None
        return ppo_policy_loss(self.config.get_config_for_module(module_id).clip_param)


@cache
def robust_learner_class(base: type[TorchLearner]) -> type[TorchLearner]:
    """`base` with `RobustLearnerMixin` in front; the same class for the same base."""
    if issubclass(base, RobustLearnerMixin):
        return base
    return type(f"Robust{base.__name__}", (RobustLearnerMixin, base), {"__doc__": base.__doc__})
