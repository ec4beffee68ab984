"""RLlib's PPO learner without what a small network waits for.

The updates are those of `PPOTorchLearner`, to rounding. Metrics, of which only the last minibatch's are seen,
are made once per update; what is not used (KL), not at all; the loss is one node of the graph
(`marl_aajr.rllib.lean.ppo_loss`); a module's weights are one tensor, and Adam one kernel (`FlatAdam`). Where
PPO's gradient is written out, it is computed where Adam reads it, unless a class in front wants to see it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor
from torch import distributed as dist

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.rllib.internals.learners import (
    OpenPPOTorchLearner,
    ResumableLearnerMixin,
    check_all_have_rows,
    log_trained,
    optimizers,
    plain_optimization,
    train_batch,
)
from marl_aajr.rllib.lean.adam import FlatAdam
from marl_aajr.rllib.lean.minibatches import Division, minibatches, rows_of, unfilled_memory
from marl_aajr.rllib.lean.module_loss import LOSS, ModuleLoss, Plan, unread_columns
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients
from marl_aajr.rllib.plugin.module_policy import ROLLOUTS_KEY


class LeanPPOTorchLearner(ResumableLearnerMixin, OpenPPOTorchLearner):
    """PPO's learner; see the module's documentation.

    A gradient that is not finite raises `NonFiniteError` instead of being set to zero.

    It steps aside for RLlib's own way of doing things where it has nothing to offer: distributions other than
    RLlib's categorical, multi-categorical and diagonal Gaussian, gradient scalers.
    """

    def build(self) -> None:
        self._reporting = True
        self._losses: dict[str, ModuleLoss] = {}
        self._plans: dict[str, Plan] = {}
        self._finite: dict[str, Tensor] = {}
        self._ready: list[FlatAdam] = []
        self._closed = not any(_added_by_users(type(self), name) for name in _STEPS)
        super().build()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        params = self.get_parameters(self.module[module_id])
        one_kind = len({(p.dtype, p.device) for p in params}) == 1
        self.register_optimizer(
            module_id=module_id,
            optimizer=FlatAdam(params) if one_kind else torch.optim.Adam(params, fused=True),
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    def update(
        self,
        batch: Any = None,
        *,
        training_data: TrainingData | None = None,
        timesteps: dict[str, Any] | None = None,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        _no_metrics_reduce: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One update, as `Learner.update` makes it; several learners agree on the number of minibatches."""
        sources = {name: kwargs.pop(name) for name in TrainingData.__dataclass_fields__ if name in kwargs}
        data = training_data or TrainingData(batch=batch, **sources)
        self._plans.clear()
        if data.data_iterators:
            self._reporting = True
            return super().update(
                training_data=data,
                timesteps=timesteps,
                num_epochs=num_epochs,
                minibatch_size=minibatch_size,
                shuffle_batch_per_epoch=shuffle_batch_per_epoch,
                _no_metrics_reduce=_no_metrics_reduce,
                **kwargs,
            )
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        rows = train_batch(self, data)
        if self.distributed:
            check_all_have_rows(self, rows.policy_batches)
        if rows.policy_batches:
            shuffle = shuffle_batch_per_epoch and num_epochs > 1
            self._train(rows, size=minibatch_size or rows.count, epochs=num_epochs, shuffle=shuffle)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    @unfilled_memory()
    def _train(self, rows: Any, *, size: int, epochs: int, shuffle: bool) -> None:
        parts = Division.of(rows.policy_batches, size)
        total = parts.minibatches(epochs)
        if self.distributed:
            # Every learner must take part in every minibatch, or the others wait for it for ever.
            most = torch.tensor(total, device=self.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            total = int(most)
        self._finite.clear()
        for name in parts.rows:
            if (optimizer := self._flat_adam(name)) is not None:
                optimizer.adopt()
        losses, trained = dict[str, Tensor](), Counter[str]()
        order = minibatches(parts, total=total, shuffle=shuffle)
        unread = unread_columns(self.config.learner_config_dict) if self._closed else ()
        batches = rows_of(rows.policy_batches, order, parts, device=self.device, without=unread)
        for done, batch in enumerate(batches, 1):
            self._reporting = done == total
            _, losses = self.train_minibatch(batch)
            trained.update({name: parts.steps_of(name, columns) for name, columns in batch.items()})
        for name, finite in self._finite.items():
            _raise_unless(bool(finite), name)
        log_trained(self, rows, {name: int(steps) for name, steps in trained.items()}, minibatches=total)
        for name, loss in losses.items():
            self.metrics.log_value((name, self.TOTAL_LOSS_KEY), loss, window=1)

    def minibatch_step(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        fwd_out = self._forward(batch)
        losses = self.compute_losses(fwd_out=fwd_out, batch=batch)
        differentiable = any(loss.requires_grad for loss in losses.values())
        gradients = self.compute_gradients(losses) if differentiable else {}
        # PPO's own loss may have its gradient in the buffers already, and then has no graph. Only the terms
        # added to it, such as a regularizer's, were differentiated above: the two make the whole.
        at_once = [name for name, out in fwd_out.items() if LOSS in out]
        for name in at_once:
            own = self._losses[name].gradients
            both = [(mine, added) for p, mine in own.items() if (added := gradients.get(p)) is not None]
            if both:
                torch._foreach_add_(*zip(*both, strict=True))
        in_place = not self._reporting and len(at_once) == len(fwd_out)
        if in_place and all(self._plan_of(name).in_place for name in at_once):
            self._ready = [self._checked(name) for name in at_once]
            self.apply_gradients({})
            return fwd_out, losses
        for name in at_once:
            gradients |= self._losses[name].gradients
        self.apply_gradients(self.postprocess_gradients(gradients))
        return fwd_out, losses

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.distributed:
            # The wrappers that average gradients must see the forward pass.
            return self.module.forward_train(batch)
        result = {}
        for name, columns in batch.items():
            plan = self._plan_of(name)
            result[name] = self._loss_of(name).forward(columns, plan.coefficients, with_graph=plan.with_graph)
        return result

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        if self._closed and not self._reporting and all(LOSS in out for out in fwd_out.values()):
            return {name: out[LOSS] for name, out in fwd_out.items()}
        return super().compute_losses(fwd_out=fwd_out, batch=batch)

    def compute_loss_for_module(
        self, *, module_id: str, config: PPOConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        loss = self._loss_of(module_id)
        if loss.distribution is None or not config.use_critic:
            given = loss.for_critic(batch, fwd_out)
            return super().compute_loss_for_module(module_id=module_id, config=config, **given)
        value, metrics = loss(
            batch,
            fwd_out,
            self._plan_of(module_id).coefficients,
            kl_coefficient=self.curr_kl_coeffs_per_module[module_id] if config.use_kl_loss else None,
            report=self._reporting,
        )
        if metrics:
            self.metrics.log_dict(metrics, key=module_id, window=1)
        return value

    def _loss_of(self, module_id: str) -> ModuleLoss:
        module = self.module[module_id].unwrapped()
        known = self._losses.get(module_id)
        if known is None or known.module is not module:  # a league may have replaced it
            optimizer = self._flat_adam(module_id)
            buffers = {} if optimizer is None else optimizer.buffers
            rollouts = self.config.learner_config_dict.get(ROLLOUTS_KEY)
            known = self._losses[module_id] = ModuleLoss(module, buffers, rollouts)
        return known

    def _flat_adam(self, module_id: str) -> FlatAdam | None:
        """The only optimizer of a module, if it is ours."""
        optimizers = self.get_optimizers_for_module(module_id)
        (_, optimizer), *others = optimizers or [("", None)]
        return optimizer if isinstance(optimizer, FlatAdam) and not others else None

    def _plan_of(self, module_id: str) -> Plan:
        """The numbers of this update that concern a module."""
        if module_id not in self._plans:
            config = self.config.get_config_for_module(module_id)
            by_norm = not config.grad_clip or config.grad_clip_by == "global_norm"
            optimizer, written = self._flat_adam(module_id), self._loss_of(module_id).gradients
            whole = optimizer is not None and written.keys() == optimizer.buffers.keys()
            self._plans[module_id] = Plan(
                coefficients=PPOCoefficients(
                    clip=config.clip_param,
                    vf_clip=math.inf if config.vf_clip_param is None else config.vf_clip_param,
                    vf_loss=config.vf_loss_coeff,
                    entropy=float(self.entropy_coeff_schedulers_per_module[module_id].get_current_value()),
                ),
                with_graph=config.use_kl_loss or not config.use_critic,
                in_place=self._closed and by_norm and whole and plain_optimization(self.config),
                grad_clip=config.grad_clip or None,
            )
        return self._plans[module_id]

    def _checked(self, module_id: str) -> FlatAdam:
        """The optimizer of a module, its gradient found finite and clipped."""
        optimizer = self._flat_adam(module_id)
        assert optimizer is not None
        self._check_and_clip(module_id, [optimizer.gradient], self._plan_of(module_id).grad_clip)
        return optimizer

    def _check_and_clip(self, module_id: str, gradients: list[Tensor], grad_clip: float | None) -> None:
        whole = gradients[0] if len(gradients) == 1 else torch.cat([part.flatten() for part in gradients])
        norm = whole.norm()
        if norm.device.type == "cpu":
            _raise_unless(math.isfinite(norm), module_id)
        else:  # to be read at the end of the update, so that nothing waits for it here
            self._finite[module_id] = norm.isfinite() & self._finite.get(module_id, True)
        if grad_clip is not None:
            scale = grad_clip / (norm + 1e-6).clamp(min=grad_clip)
            for gradient in gradients:
                gradient.mul_(scale)
            if self._reporting:
                key = (module_id, f"gradients_{DEFAULT_OPTIMIZER}_global_norm")
                self.metrics.log_value(key, norm, window=1)

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Refuses gradients that are not finite, and clips by the global norm; the rest is RLlib's."""
        gradients = list(module_gradients_dict.values())
        if not gradients:
            return module_gradients_dict
        one_optimizer = len(self.get_optimizers_for_module(module_id)) == 1
        ours = config.grad_clip_by == "global_norm" and one_optimizer
        self._check_and_clip(module_id, gradients, config.grad_clip if ours and config.grad_clip else None)
        if (config.grad_clip and not ours) or (config.log_gradients and self._reporting):
            return super().postprocess_gradients_for_module(
                module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
            )
        return module_gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        while self._ready:
            self._ready.pop().descend()
        if not gradients_dict:
            return
        if not plain_optimization(self.config):
            super().apply_gradients(gradients_dict)
            return
        for optimizer, parameters in optimizers(self):
            gradients = [gradients_dict.get(parameter) for parameter in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient  # Also where there is none: the last minibatch's is not this one's.
            if isinstance(optimizer, FlatAdam) and optimizer.take(gradients):
                optimizer.descend()
            elif any(gradient is not None for gradient in gradients):
                optimizer.step()


_STEPS = (
    "compute_losses",
    "compute_loss_for_module",
    "compute_gradients",
    "postprocess_gradients",
    "postprocess_gradients_for_module",
    "apply_gradients",
)


def _added_by_users(learner: type, method: str) -> bool:
    """Whether a class that is neither RLlib's nor ours has a method of its own."""
    return any(
        method in vars(cls) and cls.__module__.partition(".")[0] not in {"ray", "marl_aajr"}
        for cls in learner.__mro__
    )


def _raise_unless(finite: bool, module_id: str) -> None:
    if not finite:
        raise NonFiniteError(f"a gradient of the loss of module {module_id!r} is NaN or infinite")
