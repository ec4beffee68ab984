"""The plug-in for RLlib's old API stack: a policy class with a regularizer in its loss.

For those who still train policies there; everything else stays RLlib's. What is perturbed is what the network
sees, after RLlib's filters and preprocessors. Recurrent state, previous actions and whatever else the model
asks for are held fixed and follow the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.algorithms.ppo.ppo_torch_policy import PPOTorchPolicy
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.models.modelv2 import restore_original_dimensions
from ray.rllib.models.torch import torch_action_dist
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.sample_batch import SampleBatch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, from_space
from marl_aajr.core.fixed_network import fixed
from marl_aajr.core.jacobian import BACKENDS
from marl_aajr.core.objectives import EVERYTHING
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import Sample, ppo_policy_loss
from marl_aajr.rllib.plugin.module_policy import FixedColumns, RLModulePolicy
from marl_aajr.rllib.plugin.observation_layout import FlatLayout, Leaves, chosen_parts
from marl_aajr.rllib.plugin.regularized_module import Regularized
from marl_aajr.rollout.attack.beside_regularizers import check_beside

STATE_KEY = "marl_aajr"
_ADAPTED = ("entropy_coeff", "cur_lr")
"""The attributes in which schedules keep their current values; RLlib's state leaves them out."""


def robustify_policy(policy: type[PPOTorchPolicy], regularizer: Regularizer) -> type[PPOTorchPolicy]:
    """A policy class of RLlib's old API stack with a regularizer in its loss.

    Schedules go by the steps that RLlib reports to policies after each training step (agent steps), as its
    own schedules do there. Metrics are in the policy's learner statistics, as `aajr/penalty` and so on;
    RLlib averages them over minibatches.

    Args:
        policy: RLlib's `PPOTorchPolicy`, or a class derived from it. Any `ModelV2`: feed-forward,
            convolutional, recurrent, with action masks, with previous actions.
        regularizer: the settings. With coefficients of zero it trains as `policy` does, bit for bit.

    Returns:
        A class derived from `policy`, for a `PolicySpec`.

    Raises:
        ValueError: a class that is not derived from `PPOTorchPolicy`, a regularizer that changes weights.
            What depends on the environment is refused when RLlib makes the policy: observations without
            floating-point numbers, other action distributions, several GPUs for one policy.

    Example:
        >>> robust = robustify_policy(PPOTorchPolicy, AAJR(coefficient=3e-3, epsilon=0.1))
        >>> config.multi_agent(policies={"team": PolicySpec(policy_class=robust)}, ...)
    """
    if not (isinstance(policy, type) and issubclass(policy, PPOTorchPolicy)):
        raise ValueError(
            f"expected a class derived from RLlib's PPOTorchPolicy, got {policy!r}; with other algorithms "
            "use the new API stack and robustify"
        )
    if not isinstance(regularizer, Regularizer):
        raise ValueError(f"expected a regularizer, got {regularizer!r}")
    check_beside(regularizer, None)
    if regularizer.constrains:
        raise ValueError(
            f"expected a regularizer that works through the loss, got {regularizer!r}, which changes the "
            "weights of the actor alone, and a ModelV2 does not say which these are; use the new API stack"
        )
    attributes = {"regularizer": regularizer, "__module__": __name__, "__doc__": policy.__doc__}
    return type(f"Robust{policy.__name__}", (RobustPolicyMixin, policy), attributes)


class RobustPolicyMixin(PPOTorchPolicy):
    """Adds a regularizer to the loss of a policy; see `robustify_policy`."""

    regularizer: ClassVar[Regularizer]

    def __init__(self, observation_space: Any, action_space: Any, config: Any) -> None:
        # RLlib's constructor tries the loss on a batch of zeros.
        self._regularized: Regularized | None = None
        super().__init__(observation_space, action_space, config)
        self._timestep = self._minibatches = 0
        if len(self.devices) > 1:
            raise ValueError(
                f"expected one device for a policy with a regularizer, got {len(self.devices)}; set num_gpus "
                "to at most 1"
            )
        if self.model.is_time_major():
            raise ValueError("expected a batch-major model, got a time-major one; set _time_major=False")
        distribution = from_space(self.action_space)
        # RLlib's have the names of ours.
        expected = getattr(torch_action_dist, f"Torch{type(distribution).__name__}")
        found: Any = getattr(self.dist_class, "func", self.dist_class)
        if not issubclass(found, expected):
            raise ValueError(
                f"expected a policy with RLlib's {expected.__name__} for {self.action_space}, got "
                f"{found.__name__}; leave this policy as it is"
            )
        places = open_features(self.observation_space, self.regularizer.perturbed_leaves)
        self._places = places.to(self.device)
        self._regularized = Regularized(
            str(self.config.get("__policy_id")),
            self.regularizer,
            distribution,
            offers=set(EVERYTHING - {"epochs"}),
            backends=BACKENDS,
        )

    def loss(self, model: Any, dist_class: Any, train_batch: SampleBatch) -> Any:
        loss = super().loss(model, dist_class, train_batch)
        regularized = self._regularized
        if regularized is None:
            return loss
        self._minibatches += 1
        if not regularized.regularizer.due(self._timestep, self._minibatches - 1):
            return loss
        with fixed(model):
            sample = self.sample(model, train_batch, regularized.distribution)
            key = f"{self.config['seed']}/{self._minibatches}"
            return loss + regularized.term(
                sample, loss, timestep=self._timestep, minibatch=self._minibatches - 1, key=key
            )

    def sample(self, model: TorchModelV2, batch: SampleBatch, distribution: ActionDistribution) -> Sample:
        """A train batch as a regularizer sees it; rows of recurrent models are padded sequences."""
        memory = [name for name in batch if name.startswith("state_in_")]
        state = {name: batch[name] for name in sorted(memory, key=lambda name: (len(name), name))}
        names = {SampleBatch.OBS, *model.view_requirements} - {SampleBatch.SEQ_LENS}
        given = {name: batch[name] for name in names if name in batch and not name.startswith("state_")}
        columns = {name: column for name, column in given.items() if isinstance(column, Tensor)}
        known = [batch[n] for n in (SampleBatch.ACTIONS, SampleBatch.ACTION_LOGP, Postprocessing.ADVANTAGES)]
        mask = None
        if state:
            state[SampleBatch.SEQ_LENS] = lengths = batch[SampleBatch.SEQ_LENS]
            shape = (len(lengths), len(known[0]) // len(lengths))
            columns = {name: column.unflatten(0, shape) for name, column in columns.items()}
            known = [column.unflatten(0, shape) for column in known]
            mask = torch.arange(shape[1], device=lengths.device) < lengths.unsqueeze(-1)
        seen = columns.pop(SampleBatch.OBS)
        whole, layout = seen.flatten(2 if state else 1), FlatLayout(self._places)
        own = FixedColumns(layout, [whole], {"columns": columns, "state": state})
        policy = ModelPolicy(forward_of(model, seen.shape[2 if state else 1 :]), own, distribution, model)
        obs = layout.flatten(whole)
        actions, log_probs, advantages = known
        return Sample(
            policy=policy,
            obs=obs,
            outputs=policy(obs),
            mask=mask,
            actions=actions,
            log_probs=log_probs,
            advantages=advantages,
            policy_loss=ppo_policy_loss(self.config["clip_param"]),
            values=ModelCritic(policy),
        )

    def stats_fn(self, train_batch: SampleBatch) -> dict[str, Any]:
        stats = super().stats_fn(train_batch)
        if self._regularized is not None:
            name = self._regularized.regularizer.name
            stats |= {f"{name}/{key}": value.item() for key, value in self._regularized.latest.items()}
        return stats

    def on_global_var_update(self, global_vars: Any) -> None:
        """Ends the update; RLlib calls this after each training step."""
        super().on_global_var_update(global_vars)
        self._timestep = int(global_vars["timestep"])
        if self._regularized is not None and (report := self._regularized.report()) is not None:
            self._regularized.finish(report)

    def get_state(self) -> Any:
        state = super().get_state()
        assert self._regularized is not None
        state[STATE_KEY] = {
            "timestep": self._timestep,
            "minibatches": self._minibatches,
            "adapted": {name: getattr(self, name) for name in _ADAPTED},
            "state": {name: value.cpu().numpy() for name, value in self._regularized.state.items()},
        }
        return state

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        if (own := state.get(STATE_KEY)) is None or self._regularized is None:
            return
        self._timestep, self._minibatches = own["timestep"], own["minibatches"]
        for name, value in own["adapted"].items():
            setattr(self, name, value)
        self._regularized.state = {name: torch.as_tensor(value) for name, value in own["state"].items()}


def open_features(space: gym.Space[Any], leaves: Leaves | None) -> Tensor:
    """The places in a preprocessed observation of the numbers that may be perturbed, `[d]`.

    RLlib's preprocessors leave the environment's own space in `original_space`. `leaves` names the parts of a
    nested observation that may be perturbed; None: all that can be. `ValueError` where there are none.
    """
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(
            f"expected observations that RLlib has preprocessed to one array, got {space}; set "
            "_disable_preprocessor_api=False"
        )
    original = getattr(space, "original_space", space)
    places: Any = torch.arange(int(np.prod(space.shape))).unsqueeze(0)
    if isinstance(original, gym.spaces.Dict | gym.spaces.Tuple):
        places = restore_original_dimensions(places, space, "torch")
    parts = tree.flatten(places)
    return torch.cat([parts[i].flatten() for i in chosen_parts(original, leaves)])


def forward_of(model: TorchModelV2, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], Tensor]:
    """A function from one train batch to the distribution inputs of a model.

    The batch holds observations as vectors `[B, D]`, which are of this shape to the model; under `columns`
    what the model reads beside them of each row, `[B, ...]`; under `state` what it reads of each sequence.
    That is empty for models without a memory; with one, rows are the steps of sequences, `[B, T, ...]`.
    """

    def forward(batch: dict[str, Any]) -> Tensor:
        obs, columns, state = batch[SampleBatch.OBS], batch["columns"], batch["state"]
        if state:
            columns = {name: column.flatten(0, 1) for name, column in columns.items()}
        rows = SampleBatch({**columns, SampleBatch.OBS: obs.reshape(-1, *shape)})
        rows.set_training(True)
        memory = [value for name, value in state.items() if name != SampleBatch.SEQ_LENS]
        outputs, _ = model(rows, memory, state.get(SampleBatch.SEQ_LENS))
        return outputs.reshape(*obs.shape[:-1], outputs.shape[-1])

    return forward


class ModelPolicy(RLModulePolicy):
    """The policy of a model on one train batch."""

    def parameters(self) -> list[Tensor]:
        return []  # a ModelV2 does not say which are the actor's


@dataclass(frozen=True)
class ModelCritic:
    """V(s + δ) of one train batch; follows its rows through `select`."""

    policy: ModelPolicy

    def __call__(self, obs: Tensor) -> Tensor:
        self.policy(obs)
        model: Any = self.policy.network
        return model.value_function().reshape(obs.shape[:-1])

    def select(self, index: Tensor) -> ModelCritic:
        return ModelCritic(self.policy.select(index))
