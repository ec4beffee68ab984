"""The learner mixin: any torch learner of RLlib's new API stack, with a regularizer in its loss.

The term enters where RLlib documents custom losses, ``Learner.compute_losses``; optimisers, connectors,
metrics and checkpoints stay the learner's own. A module whose regularizer is inactive takes no part: no
autograd work, no random number, the unmodified learner bit for bit.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from marl_aajr.distributions import ActionDistribution
from marl_aajr.numerics import NonFiniteError
from marl_aajr.regularizers.base import PolicyLoss, Regularizer, Sample, ppo_policy_loss
from marl_aajr.rllib.internals import add_to_policy_loss
from marl_aajr.rllib.policy import module_distribution, module_policy, snapshot

REGULARIZERS_KEY = "marl_aajr_regularizers"
"""Where :func:`~marl_aajr.rllib.robustify` leaves the regularizers in ``config.learner_config_dict``."""

STATE_KEY = "marl_aajr"


class RobustLearnerMixin(TorchLearner):
    """Adds each module's regularizer to its loss; see :func:`robust_learner_class`."""

    def build(self) -> None:
        # Learner.build calls hooks that read these.
        self._regularizers: Mapping[str, Regularizer] = self.config.learner_config_dict[REGULARIZERS_KEY]
        self._distributions: dict[str, ActionDistribution] = {}
        self._timestep = 0
        self._updates = 0
        self._clean_batch: dict[str, dict[str, Any]] = {}
        self._records: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self._seconds: dict[str, float] = defaultdict(float)
        super().build()
        for module_id, regularizer in self._regularizers.items():
            if module_id not in self.module:
                known = ", ".join(sorted(self.module.keys()))
                raise ValueError(f"expected a regularizer for a module out of {known}; got {module_id!r}")
            distribution = module_distribution(self.module[module_id].unwrapped())
            regularizer.check(distribution)
            self._distributions[module_id] = distribution

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        self._timestep = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._timestep)

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        # Before any module sees the batch: RLlib's own action-masking module pops from it.
        if any(regularizer.active(self._timestep) for regularizer in self._regularizers.values()):
            self._clean_batch = snapshot(batch)
        return super()._update(batch, **kwargs)

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        losses = super().compute_losses(fwd_out=fwd_out, batch=batch)
        self._updates += 1
        for module_id, loss in losses.items():
            regularizer = self._regularizers.get(module_id)
            if regularizer is not None and regularizer.active(self._timestep):
                started = time.perf_counter()
                outputs = fwd_out[module_id].get(Columns.ACTION_DIST_INPUTS)
                term = self._regularize(module_id, regularizer, outputs, loss)
                losses[module_id] = loss + term
                add_to_policy_loss(self, module_id, term)
                self._seconds[module_id] += time.perf_counter() - started
        return losses

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, record in self._records.items():
            metrics = {key: _reduce(key, values) for key, values in record.items()}
            if self.device.type != "cpu" and metrics["nonfinite"] > 0:
                raise NonFiniteError(
                    f"the regularizer of module {module_id!r}: {int(metrics['nonfinite'])} non-finite "
                    "numbers; run on the CPU to learn where they arose"
                )
            metrics["seconds"] = torch.tensor(self._seconds[module_id])
            name = self._regularizers[module_id].name
            for key, value in metrics.items():
                self.metrics.log_value((module_id, name, key), value, window=1)
        self._records.clear()
        self._seconds.clear()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(STATE_KEY, components, not_components):
            state[STATE_KEY] = {"updates": self._updates, "timestep": self._timestep}
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if STATE_KEY in state:
            self._updates = state[STATE_KEY]["updates"]
            self._timestep = state[STATE_KEY]["timestep"]

    def _regularize(
        self, module_id: str, regularizer: Regularizer, outputs: Tensor | None, loss: Tensor
    ) -> Tensor:
        sample = self._sample(module_id, outputs)
        generator = self._generator(module_id)
        state = generator.get_state()
        evaluation = regularizer.evaluate(sample, timestep=self._timestep, generator=generator)
        if self.device.type == "cpu" and evaluation.metrics["nonfinite"] > 0:
            # The same numbers once more, slowly, to name the first one that is not finite.
            generator.set_state(state)
            try:
                regularizer.evaluate(sample, timestep=self._timestep, generator=generator, check=True)
            except NonFiniteError as error:
                where = f"regularizer {regularizer.name!r} of module {module_id!r}"
                raise NonFiniteError(f"{where}, environment step {self._timestep}: {error}") from None
        added, base = evaluation.loss.detach().abs(), loss.detach().abs()
        record = self._records[module_id]
        for key, value in evaluation.metrics.items():
            record[key].append(value)
        record["loss_share"].append(added / (added + base))
        return evaluation.loss

    def _sample(self, module_id: str, outputs: Tensor | None) -> Sample:
        batch = self._clean_batch[module_id]
        module = self.module[module_id].unwrapped()
        policy, obs = module_policy(module, batch, self._distributions[module_id])
        return Sample(
            policy=policy,
            obs=obs,
            outputs=policy(obs) if outputs is None else outputs,
            mask=None if (mask := batch.get(Columns.LOSS_MASK)) is None else mask.bool(),
            actions=batch.get(Columns.ACTIONS),
            log_probs=batch.get(Columns.ACTION_LOGP),
            advantages=batch.get(Postprocessing.ADVANTAGES),
            policy_loss=self._policy_loss(module_id),
        )

    def _policy_loss(self, module_id: str) -> PolicyLoss | None:
        if not isinstance(self, PPOTorchLearner):
            return None
        return ppo_policy_loss(self.config.get_config_for_module(module_id).clip_param)

    def _generator(self, module_id: str) -> torch.Generator:
        """Private randomness keyed by (seed, module, update): a resumed run draws what it would have."""
        key = zlib.crc32(f"{self.config.seed}/{module_id}/{self._updates}".encode())
        return torch.Generator(device=self.device).manual_seed(key)


def _reduce(key: str, values: list[Tensor]) -> Tensor:
    stacked = torch.stack(values).float()
    if key == "nonfinite":
        return stacked.sum()
    return stacked.amax() if key.endswith("_max") else stacked.mean()


@cache
def robust_learner_class(base: type[TorchLearner]) -> type[TorchLearner]:
    """``base`` with :class:`RobustLearnerMixin` in front; the same class for the same base."""
    if issubclass(base, RobustLearnerMixin):
        return base
    return type(f"Robust{base.__name__}", (RobustLearnerMixin, base), {"__doc__": base.__doc__})
