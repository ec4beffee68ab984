"""RLlib's PPO learner without what a small network waits for.

The same updates as ``PPOTorchLearner``'s, to rounding: its losses, minibatches and schedules. What that one
does once per minibatch and only the last of which is seen (metrics, explained variance), this one does once
per update; what it computes and does not use (KL), not at all; the loss is one node of the graph
(`marl_aajr.rllib.ppo_loss`); Adam is one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_KL_KEY,
    LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY,
    LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY,
)
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER, ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.torch_utils import explained_variance
from torch import Tensor

from marl_aajr.distributions import ActionDistribution
from marl_aajr.numerics import NonFiniteError
from marl_aajr.rllib.internals import (
    begin_update,
    current_entropy_coeff,
    log_trained,
    plain_networks,
    plain_optimization,
    train_batch,
)
from marl_aajr.rllib.minibatches import Index, minibatches, needed
from marl_aajr.rllib.players import own_distribution
from marl_aajr.rllib.ppo_loss import PPOCoefficients, PPORows, ppo_loss, ppo_report
from marl_aajr.rollout.fragments import map_tree

VALUES = "marl_aajr_values"
"""Where a forward pass leaves the values, if it has computed them."""


class LeanPPOTorchLearner(PPOTorchLearner):
    """PPO's learner; see the module's documentation.

    A gradient that is not finite raises `NonFiniteError` instead of being set to zero.

    It steps aside for RLlib's own way of doing things where it has nothing to offer: recurrent modules,
    distributions other than RLlib's categorical, multi-categorical and diagonal Gaussian, gradient scalers.
    """

    def build(self) -> None:
        self._reporting = True
        self._kinds: dict[str, ActionDistribution | None] = {}
        self._networks: dict[str, Any] = {}
        self._coefficients: dict[str, PPOCoefficients] = {}
        self._finite: dict[str, Tensor] = {}
        super().build()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        params = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(params, fused=True),
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
        """One update, as ``Learner.update`` makes it; several learners agree on the number of minibatches."""
        sources = {name: kwargs.pop(name) for name in TrainingData.__dataclass_fields__ if name in kwargs}
        data = training_data or TrainingData(batch=batch, **sources)
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
        begin_update(self)
        rows = train_batch(self, data)
        if rows.policy_batches:
            shuffle = shuffle_batch_per_epoch and num_epochs > 1
            self._train(rows, size=minibatch_size or rows.count, epochs=num_epochs, shuffle=shuffle)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    def _train(self, rows: Any, *, size: int, epochs: int, shuffle: bool) -> None:
        columns = {name: _tensors(dict(part)) for name, part in rows.policy_batches.items()}
        counts = {name: len(part) for name, part in rows.policy_batches.items()}
        total = max(needed(count, size=size, epochs=epochs) for count in counts.values())
        if self.distributed:
            # Every learner must take part in every minibatch, or the others wait for it for ever.
            total = _largest(total, self.device)
        self._coefficients = {name: self._coefficients_of(name) for name in columns}
        self._finite.clear()
        losses: Mapping[str, Tensor] = {}
        order = minibatches(counts, size=size, epochs=epochs, shuffle=shuffle, total=total)
        for done, chosen in enumerate(order, 1):
            self._reporting = done == total
            _, losses, _ = self._update(self._minibatch(columns, chosen))
        for name, finite in self._finite.items():
            _raise_unless(finite, name)
        log_trained(self, rows, size=size, minibatches=total)
        for name, loss in losses.items():
            self.metrics.log_value((name, self.TOTAL_LOSS_KEY), loss, window=1)

    def _minibatch(self, columns: Mapping[str, Any], chosen: Mapping[str, Index]) -> dict[str, Any]:
        result = {}
        for name, rows in chosen.items():
            index = torch.from_numpy(rows).to(self.device)
            result[name] = map_tree(partial(_at, index), columns[name])
        return result

    def _uncompiled_update(self, batch: dict[str, Any], **_: Any) -> tuple[Any, Any, Any]:
        fwd_out = self._forward(batch)
        losses = self.compute_losses(fwd_out=fwd_out, batch=batch)
        self.apply_gradients(self.postprocess_gradients(self.compute_gradients(losses)))
        return fwd_out, losses, {}

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.distributed:
            # The wrappers that average gradients must see the forward pass.
            return self.module.forward_train(batch)
        return {name: self._forward_module(name, columns) for name, columns in batch.items()}

    def _forward_module(self, name: str, columns: dict[str, Any]) -> dict[str, Any]:
        if name not in self._networks:
            self._networks[name] = plain_networks(self.module[name])
        if self._networks[name] is None:
            return self.module[name].forward_train(columns)
        actor, critic = self._networks[name]
        obs = columns[Columns.OBS]
        return {Columns.ACTION_DIST_INPUTS: actor(obs), VALUES: critic(obs).squeeze(-1)}

    def compute_loss_for_module(
        self, *, module_id: str, config: PPOConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """RLlib's loss of one module, by a shorter way."""
        module = self.module[module_id].unwrapped()
        if module_id not in self._kinds:
            self._kinds[module_id] = own_distribution(module, module.action_space)
        kind = self._kinds[module_id]
        if kind is None or not config.use_critic:
            return super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
        values = fwd_out.get(VALUES)
        if values is None:
            values = module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        rows = PPORows(
            inputs=fwd_out[Columns.ACTION_DIST_INPUTS],
            values=values,
            actions=batch[Columns.ACTIONS],
            log_probs=batch[Columns.ACTION_LOGP],
            advantages=batch[Postprocessing.ADVANTAGES],
            value_targets=batch[Postprocessing.VALUE_TARGETS],
        )
        mask = batch.get(Columns.LOSS_MASK)
        rows = rows if mask is None else rows.where(mask.bool())
        coefficients = self._coefficients.get(module_id) or self._coefficients_of(module_id)
        loss = ppo_loss(kind, rows, coefficients)
        divergence = None
        if config.use_kl_loss:
            old = batch[Columns.ACTION_DIST_INPUTS]
            divergence = kind.kl(old if mask is None else old[mask.bool()], rows.inputs).mean()
            loss = loss + self.curr_kl_coeffs_per_module[module_id] * divergence
        if self._reporting and len(rows.values):
            self._report(module_id, rows, divergence, ppo_report(kind, rows, coefficients))
        return loss

    def _report(
        self, module_id: str, rows: PPORows, divergence: Tensor | None, parts: Mapping[str, Tensor]
    ) -> None:
        kl = torch.zeros_like(parts["entropy"]) if divergence is None else divergence.detach()
        explained = explained_variance(rows.value_targets, rows.values.detach())
        metrics = {
            POLICY_LOSS_KEY: parts["policy_loss"],
            VF_LOSS_KEY: parts["vf_loss"],
            LEARNER_RESULTS_VF_LOSS_UNCLIPPED_KEY: parts["vf_loss_unclipped"],
            LEARNER_RESULTS_VF_EXPLAINED_VAR_KEY: explained,
            ENTROPY_KEY: parts["entropy"],
            LEARNER_RESULTS_KL_KEY: kl,
        }
        self.metrics.log_dict(metrics, key=module_id, window=1)

    def _coefficients_of(self, module_id: str) -> PPOCoefficients:
        config = self.config.get_config_for_module(module_id)
        return PPOCoefficients(
            clip=config.clip_param,
            vf_clip=math.inf if config.vf_clip_param is None else config.vf_clip_param,
            vf_loss=config.vf_loss_coeff,
            entropy=current_entropy_coeff(self, module_id),
        )

    def postprocess_gradients_for_module(
        self, *, module_id: str, config: Any = None, module_gradients_dict: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Refuses gradients that are not finite, and clips by the global norm; the rest is RLlib's."""
        gradients = list(module_gradients_dict.values())
        if not gradients:
            return module_gradients_dict
        norm = torch.nn.utils.get_total_norm(gradients)
        self._check(module_id, norm)
        one_optimizer = len(self.get_optimizers_for_module(module_id)) == 1
        if config.grad_clip and config.grad_clip_by == "global_norm" and one_optimizer:
            scale = config.grad_clip / (norm + 1e-6).clamp(min=config.grad_clip)
            for gradient in gradients:
                gradient.mul_(scale)
            if self._reporting:
                key = (module_id, f"gradients_{DEFAULT_OPTIMIZER}_global_norm")
                self.metrics.log_value(key, norm, window=1)
            return module_gradients_dict
        if config.grad_clip or (config.log_gradients and self._reporting):
            return super().postprocess_gradients_for_module(
                module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
            )
        return module_gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        """Steps every optimizer; gradients have been checked."""
        if not plain_optimization(self.config):
            super().apply_gradients(gradients_dict)
            return
        for parameter, gradient in gradients_dict.items():
            parameter.grad = gradient
        for module_id in self.module.keys():  # noqa: SIM118 - a MultiRLModule is no mapping
            for _, optimizer in self.get_optimizers_for_module(module_id):
                optimizer.step()

    def _set_optimizer_state(self, state: Any) -> None:
        super()._set_optimizer_state(state)
        for module_id in self.module.keys():  # noqa: SIM118 - a MultiRLModule is no mapping
            for _, optimizer in self.get_optimizers_for_module(module_id):
                for group in optimizer.param_groups:
                    group["fused"] = True  # also after the state of RLlib's own learner

    def _check(self, module_id: str, norm: Tensor) -> None:
        """Raise for a norm that is not finite; on an accelerator, at the end of the update."""
        finite = norm.isfinite()
        if norm.device.type == "cpu":
            _raise_unless(finite, module_id)
        else:
            known = self._finite.get(module_id)
            self._finite[module_id] = finite if known is None else known & finite


def _at(index: Tensor, column: Tensor) -> Tensor:
    return column[index]


def _raise_unless(finite: Tensor, module_id: str) -> None:
    if not bool(finite):
        raise NonFiniteError(f"a gradient of the loss of module {module_id!r} is NaN or infinite")


def _tensors(columns: Any) -> Any:
    """The columns that are tensors; RLlib's connectors also make lists of infos."""
    if isinstance(columns, Mapping):
        parts = {key: _tensors(part) for key, part in columns.items()}
        return {key: part for key, part in parts.items() if part is not None}
    return columns if isinstance(columns, Tensor) else None


def _largest(number: int, device: torch.device) -> int:
    """The largest of all learners' numbers."""
    shared = torch.tensor(number, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)
