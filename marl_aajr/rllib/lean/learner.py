"""RLlib's PPO learner without what a small network waits for.

The same updates as `PPOTorchLearner`'s, to rounding: its losses, minibatches and schedules. What that one
does once per minibatch and only the last of which is seen (metrics, explained variance), this one does once
per update; what it computes and does not use (KL), not at all; the loss is one node of the graph
(`marl_aajr.rllib.lean.ppo_loss`); Adam is one kernel (`LeanAdam`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from operator import methodcaller
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor
from torch import distributed as dist

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.policy import map_tree
from marl_aajr.rllib.internals.learners import (
    OpenPPOTorchLearner,
    ResumableLearnerMixin,
    check_all_have_rows,
    log_trained,
    optimizers,
    plain_optimization,
    train_batch,
)
from marl_aajr.rllib.lean.module_loss import GRADIENT, ModuleLoss, minibatches
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients


class LeanAdam(torch.optim.Adam):
    """`Adam(fused=True)` with a `descend` beside `step`: the same numbers and state, fewer lines.

    Torch adds one to the counter of every parameter, groups parameters by device and type at every step, and
    announces each step to hooks and to its profiler. `descend` does none of this: the counters are views of
    one tensor.

    Args:
        params: The parameters, all floating-point and on one device.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._columns: list[list[Tensor]] = []
        super().__init__(list(params), fused=True)

    @torch.no_grad()
    def descend(self) -> None:
        """One step down the gradients, without hooks; torch's `step` where a parameter has no gradient."""
        (group, *others) = self.param_groups
        gradients = [parameter.grad for parameter in group["params"]]
        if others or not self._columns or any(gradient is None for gradient in gradients):
            self.step()
            self._share_counters(group["params"])
            return
        self._counts.add_(1)
        averages, squares, counters = self._columns
        torch._fused_adam_(
            group["params"],
            gradients,
            averages,
            squares,
            [],
            counters,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = True
        self._columns = []

    def _share_counters(self, parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        if self._columns or not all(states):
            return
        self._counts = torch.stack([state["step"] for state in states])
        for state, counter in zip(states, self._counts, strict=True):
            state["step"] = counter
        self._columns = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]


class LeanPPOTorchLearner(ResumableLearnerMixin, OpenPPOTorchLearner):
    """PPO's learner; see the module's documentation.

    A gradient that is not finite raises `NonFiniteError` instead of being set to zero.

    It steps aside for RLlib's own way of doing things where it has nothing to offer: recurrent modules,
    distributions other than RLlib's categorical, multi-categorical and diagonal Gaussian, gradient scalers.
    """

    def build(self) -> None:
        self._reporting = True
        self._losses: dict[str, ModuleLoss] = {}
        self._coefficients: dict[str, PPOCoefficients] = {}
        self._finite: dict[str, Tensor] = {}
        super().build()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        params = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=LeanAdam(params),
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
        self._coefficients.clear()
        if data.data_iterators or any(module.is_stateful() for module in self.module.values()):
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

    def _train(self, rows: Any, *, size: int, epochs: int, shuffle: bool) -> None:
        columns = {name: _tensors(dict(part)) for name, part in rows.policy_batches.items()}
        counts = {name: len(part) for name, part in rows.policy_batches.items()}
        total = -(-epochs * max(counts.values()) // size)  # as many as the longest needs
        if self.distributed:
            # Every learner must take part in every minibatch, or the others wait for it for ever.
            most = torch.tensor(total, device=self.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            total = int(most)
        self._finite.clear()
        losses: Mapping[str, Tensor] = {}
        order = minibatches(counts, size=size, total=total, shuffle=shuffle)
        for done, chosen in enumerate(order, 1):
            index = {name: torch.from_numpy(rows).to(self.device) for name, rows in chosen.items()}
            take = {name: methodcaller("index_select", 0, rows) for name, rows in index.items()}
            self._reporting = done == total
            _, losses = self.train_minibatch({n: map_tree(take[n], columns[n]) for n in chosen})
        for name, finite in self._finite.items():
            _raise_unless(bool(finite), name)
        log_trained(self, rows, size=size, minibatches=total)
        for name, loss in losses.items():
            self.metrics.log_value((name, self.TOTAL_LOSS_KEY), loss, window=1)

    def minibatch_step(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        fwd_out = self._forward(batch)
        losses = self.compute_losses(fwd_out=fwd_out, batch=batch)
        differentiable = any(loss.requires_grad for loss in losses.values())
        gradients = self.compute_gradients(losses) if differentiable else {}
        for out in fwd_out.values():
            # PPO's own loss may bring its gradient along (`ModuleLoss.forward`) and then has no graph. Only
            # what was added to it, such as a regularizer's term, was differentiated above: the two make the
            # whole.
            for parameter, gradient in out.get(GRADIENT, {}).items():
                added = gradients.get(parameter)
                gradients[parameter] = gradient if added is None else gradient.add_(added)
        self.apply_gradients(self.postprocess_gradients(gradients))
        return fwd_out, losses

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.distributed:
            # The wrappers that average gradients must see the forward pass.
            return self.module.forward_train(batch)
        result = {}
        for name, columns in batch.items():
            config = self.config.get_config_for_module(name)
            result[name] = self._loss_of(name).forward(
                columns,
                self._coefficients_of(name),
                with_graph=config.use_kl_loss or not config.use_critic,
            )
        return result

    def compute_loss_for_module(
        self, *, module_id: str, config: PPOConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        loss = self._loss_of(module_id)
        if loss.distribution is None or not config.use_critic:
            return super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
        value, metrics = loss(
            batch,
            fwd_out,
            self._coefficients_of(module_id),
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
            known = self._losses[module_id] = ModuleLoss(module)
        return known

    def _coefficients_of(self, module_id: str) -> PPOCoefficients:
        if module_id not in self._coefficients:
            config = self.config.get_config_for_module(module_id)
            self._coefficients[module_id] = PPOCoefficients(
                clip=config.clip_param,
                vf_clip=math.inf if config.vf_clip_param is None else config.vf_clip_param,
                vf_loss=config.vf_loss_coeff,
                entropy=float(self.entropy_coeff_schedulers_per_module[module_id].get_current_value()),
            )
        return self._coefficients[module_id]

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Refuses gradients that are not finite, and clips by the global norm; the rest is RLlib's."""
        gradients = list(module_gradients_dict.values())
        if not gradients:
            return module_gradients_dict
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        if norm.device.type == "cpu":
            _raise_unless(math.isfinite(norm), module_id)
        else:  # to be read at the end of the update, so that nothing waits for it here
            self._finite[module_id] = norm.isfinite() & self._finite.get(module_id, True)
        one_optimizer = len(self.get_optimizers_for_module(module_id)) == 1
        if config.grad_clip and config.grad_clip_by == "global_norm" and one_optimizer:
            scale = config.grad_clip / (norm + 1e-6).clamp(min=config.grad_clip)
            for gradient in gradients:
                gradient.mul_(scale)
            if self._reporting:
                key = (module_id, f"gradients_{DEFAULT_OPTIMIZER}_global_norm")
                self.metrics.log_value(key, norm, window=1)
        elif config.grad_clip or (config.log_gradients and self._reporting):
            return super().postprocess_gradients_for_module(
                module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
            )
        return module_gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        if not plain_optimization(self.config):
            super().apply_gradients(gradients_dict)
            return
        for optimizer, parameters in optimizers(self):
            for parameter in parameters:
                # Not only where there is one: a gradient of the last minibatch is none of this one's.
                parameter.grad = gradients_dict.get(parameter)
            if any(parameter.grad is not None for parameter in parameters):
                optimizer.descend() if isinstance(optimizer, LeanAdam) else optimizer.step()


def _raise_unless(finite: bool, module_id: str) -> None:
    if not finite:
        raise NonFiniteError(f"a gradient of the loss of module {module_id!r} is NaN or infinite")


def _tensors(columns: Any) -> Any:
    """The columns that are tensors; RLlib's connectors also make lists of infos."""
    if isinstance(columns, Mapping):
        parts = {key: _tensors(part) for key, part in columns.items()}
        return {key: part for key, part in parts.items() if part is not None}
    return columns if isinstance(columns, Tensor) else None
