"""A learner of RLlib's with regularizers in its loss, as `robustify` makes it.

RLlib calls `RobustLearnerMixin` for each minibatch (`before_step`, then `compute_losses`), where a
regularizer's term joins its module's loss; `RegularizedModule` computes the term.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor
from torch import distributed as dist

from marl_aajr.core.checks import is_search_space
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import PolicyLoss, ppo_policy_loss
from marl_aajr.rllib.internals.learners import (
    ResumableLearnerMixin,
    add_to_policy_loss,
    all_sum,
    backends_for,
    check_all_have_rows,
    in_step,
    learner_index,
)
from marl_aajr.rllib.plugin.epoch_weights import rows_in
from marl_aajr.rllib.plugin.module_policy import ROLLOUTS_KEY, copied
from marl_aajr.rllib.plugin.regularized_module import RegularizedModule
from marl_aajr.rllib.plugin.update_report import Report
from marl_aajr.rllib.sampling.batch_env import ask
from marl_aajr.rllib.trained_modules import surely_trains
from marl_aajr.rollout.attack.beside_regularizers import check_beside, taking_over
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

REGULARIZERS_KEY = "marl_aajr_regularizers"
"""The key of the regularizer, or of the modules' regularizers, in `config.learner_config_dict`."""

STATE_KEY = "marl_aajr"


class RobustLearnerMixin(ResumableLearnerMixin):
    """Adds each module's regularizer to its loss; see `robust_learner_class`."""

    def build(self) -> None:
        # Learner.build calls hooks that read these.
        self._regularized: dict[str, RegularizedModule] = {}
        self._structures: list[Any] = []
        self._ids: Mapping[str, Any] | None = None
        self._timestep = self._updates = 0
        self._begun = False
        self._clean_batch: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, int] = {}
        super().build()
        self._match_modules([name for name, _ in self.module.items() if surely_trains(self.config, name)])

    def _match_modules(self, trained: Collection[str] = ()) -> None:
        """Regularizers of the modules of now, which leagues add, remove and replace under the same name.

        Those of the modules in `trained` are made, if they have none yet.
        """
        given = self.config.learner_config_dict[REGULARIZERS_KEY]
        before, self._regularized = self._regularized, {}
        for module_id, wrapped in self.module.items():
            module = wrapped.unwrapped()
            known = before.get(module_id)
            every = isinstance(given, Regularizer) or is_search_space(given)
            regularizer = given if every else given.get(module_id)
            if known is not None and known.module is module:
                self._regularized[module_id] = known
            elif module_id in trained and regularizer is not None:
                attack = self.config.learner_config_dict.get(ROLLOUTS_KEY)
                regularizer = taking_over(regularizer, attack, "mask", "scale")
                self._check_beside(module_id, regularizer)
                self._regularized[module_id] = RegularizedModule(
                    module_id,
                    regularizer,
                    module,
                    policy_loss=self._policy_loss(module_id),
                    backends=backends_for(self),
                    shard=(learner_index(self), self.config.num_learners) if in_step(self) else None,
                )
                self._follow(module_id)

    def follow(self, structures: list[Any], ids: Mapping[str, Any]) -> None:
        """What the env runners know, also for modules that are yet to come.

        Args:
            structures: See `RegularizedModule.follow`.
            ids: The environment's own keys of all agents, by their names.

        Raises:
            ValueError: Observations that cannot be followed, or a regularizer that the rollouts contradict.
        """
        self._structures, self._ids = structures, ids
        for module_id, known in self._regularized.items():
            self._check_beside(module_id, known.regularizer)
            self._follow(module_id)

    def _check_beside(self, module_id: str, regularizer: Regularizer) -> None:
        attack = self.config.learner_config_dict.get(ROLLOUTS_KEY)
        if self._ids is not None or attack is None or attack.agents is None:
            check_beside(regularizer, rollouts_of(self.config, module_id, self._ids or {}))

    def _follow(self, module_id: str) -> None:
        try:
            self._regularized[module_id].follow(self._structures)
        except ValueError as error:
            raise ValueError(f"module {module_id!r}: {error}") from None

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        self._timestep = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._timestep)
        self._begun = False

    def batch_is_made(self, batch: Any) -> None:
        super().batch_is_made(batch)
        self._rows = {
            n: rows_in(columns) for n, columns in batch.policy_batches.items() if Columns.OBS in columns
        }

    def before_step(self, batch: dict[str, Any]) -> None:
        super().before_step(batch)
        self._updates += 1
        if not self._begun:
            if in_step(self):
                check_all_have_rows(self, batch)
            self._match_modules(batch)
            self._begun = True
            for module_id, regularized in self._regularized.items():
                if regularized.epoch is not None:
                    regularized.epoch.begin_update(self._rows.get(module_id))
        for module_id, columns in batch.items():
            if (known := self._regularized.get(module_id)) is not None and known.epoch is not None:
                known.epoch.before(columns)
        # RLlib's own action-masking module pops from its batch.
        if any(self._has_part(module_id) for module_id in self._regularized):
            self._clean_batch = {name: copied(dict(columns)) for name, columns in batch.items()}

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        losses = super().compute_losses(fwd_out=fwd_out, batch=batch)
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
        if regularized.regularizer.due(self._timestep, self._updates - 1):
            key = f"{self.config.seed}/{self._updates}"
            term = regularized.term(
                sample, own, timestep=self._timestep, minibatch=self._updates - 1, key=key
            )
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
            self._regularized[module_id].finish(report)
        for module_id, regularized in self._regularized.items():
            for name, value in regularized.told().items():
                self.metrics.log_value((module_id, regularized.regularizer.name, name), value, window=1)

    def measured_kl(self, module_id: str, value: Any) -> Any:
        # Each learner measures on its own rows; with coefficients of their own they would drift apart, and a
        # checkpoint holds the first one's.
        if not (in_step(self) and self._has_part(module_id)):
            return value
        total = all_sum(torch.tensor(float(value), device=self.device))
        return float(total) / self.config.num_learners

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.saves(STATE_KEY, components, not_components):
            self._match_modules()
            states = {name: dict(regularized.state) for name, regularized in self._regularized.items()}
            reported = {name: regularized.reported for name, regularized in self._regularized.items()}
            state[STATE_KEY] = {"updates": self._updates, "timestep": self._timestep}
            state[STATE_KEY] |= {"modules": states, "reported": reported}
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if STATE_KEY in state:
            self._updates = state[STATE_KEY]["updates"]
            self._timestep = state[STATE_KEY]["timestep"]
            saved = state[STATE_KEY]["modules"]
            self._match_modules(saved)
            # Of modules that are not here RLlib ignores the weights.
            for module_id in saved.keys() & self._regularized.keys():
                regularized = self._regularized[module_id]
                regularized.state = regularized.regularizer.initial_state() | saved[module_id]
                regularized.reported = state[STATE_KEY]["reported"][module_id]

    def _reports(self) -> dict[str, Report]:
        """A report on each module that something was done to, in this update, by any learner."""
        own = {module_id: regularized.report() for module_id, regularized in self._regularized.items()}
        every = [own]
        if self.config.num_learners > 1:
            every *= dist.get_world_size()
            dist.all_gather_object(every, own)
        found = {
            module_id: [report for reports in every if (report := reports.get(module_id)) is not None]
            for module_id in own
        }
        return {module_id: Report.of_all(reports) for module_id, reports in found.items() if reports}

    def _has_part(self, module_id: str) -> bool:
        """Whether the loss of a module is touched."""
        if module_id not in self._regularized:
            return False
        regularizer = self._regularized[module_id].regularizer
        waits = in_step(self) and regularizer.constrains
        return waits or regularizer.due(self._timestep, self._updates - 1)

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


def rollouts_of(config: Any, module_id: str, ids: Mapping[str, Any]) -> RolloutAttack | None:
    """The attack that agents of a module act under, by the configuration of a learner.

    It does not know what agents observe: under an attack on channels that names none, every module counts.

    Args:
        config: The configuration.
        module_id: The module.
        ids: The environment's own keys of all agents, by their names: a mapping knows no others. Where it
            lacks an attacked one, every module counts.
    """
    attack: RolloutAttack | None = config.learner_config_dict.get(ROLLOUTS_KEY)
    if attack is None or attack.agents is None or not ids.keys() >= set(attack.agents):
        return attack
    try:
        attacked = ask({agent: ids[agent] for agent in attack.agents}, config.policy_mapping_fn)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return attack  # A user's function may ask an episode that has begun.
    return attack if module_id in attacked.values() else None
