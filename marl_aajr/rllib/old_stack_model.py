"""A ModelV2 of RLlib's old API stack and one of its train batches, seen as a policy.

Only the observations are a variable: those that the network sees, after RLlib's filters and preprocessors.
Recurrent state, previous actions and whatever else the model asks for are held fixed and follow the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.models.modelv2 import restore_original_dimensions
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.sample_batch import SampleBatch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.policy import Policy
from marl_aajr.regularizers.sample import PolicyLoss, Sample
from marl_aajr.rllib.plugin.observation_layout import Leaves, ObservationLayout

_STATE = "state_"


@dataclass(frozen=True)
class Features:
    """The numbers of a preprocessed observation that may be perturbed.

    Attributes:
        open: their places in the flattened observation, `[d]`.
        order: puts the open ones, followed by the others, back into their order.
    """

    open: Tensor
    order: Tensor

    @classmethod
    def of(cls, space: gym.Space[Any], leaves: Leaves | None) -> Features:
        """Those of a policy's (preprocessed) observation space.

        Args:
            space: the policy's; RLlib's preprocessors leave the environment's in `original_space`.
            leaves: names of the parts of a nested observation that may be perturbed; None: all that can be.

        Raises:
            ValueError: observations that are not an array, or have nothing to perturb.
        """
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(
                f"expected observations that RLlib has preprocessed to one array, got {space}; set "
                "_disable_preprocessor_api=False"
            )
        size = int(np.prod(space.shape))
        original = getattr(space, "original_space", space)
        places = torch.arange(size).reshape(1, size)
        if not isinstance(original, gym.spaces.Dict | gym.spaces.Tuple):
            ObservationLayout.of(_like(original), lead_dims=1, leaves=leaves)
            return cls(places[0], places[0])
        nested = restore_original_dimensions(places, space, "torch")
        dtypes = tree.map_structure(_like, _nest(original))
        chosen = ObservationLayout.of(dtypes, lead_dims=1, leaves=leaves).chosen
        parts = [part.flatten() for part in tree.flatten(nested)]
        wanted = torch.cat([parts[i] for i in chosen])
        others = torch.tensor([i for i in range(size) if i not in set(wanted.tolist())], dtype=torch.long)
        return cls(wanted, torch.cat([wanted, others]).argsort())

    def to(self, device: torch.device) -> Features:
        """The same, on a device."""
        return Features(self.open.to(device), self.order.to(device))

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The open numbers and the others, of `[..., D]`."""
        places = self.order.argsort()
        count = len(self.open)
        return flat[..., places[:count]], flat[..., places[count:]]

    def join(self, free: Tensor, fixed: Tensor) -> Tensor:
        """The whole of both."""
        return torch.cat([free, fixed], -1)[..., self.order]


def _like(space: gym.Space[Any]) -> Tensor:
    """One number of the kind that a space holds."""
    numeric = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
    return torch.zeros(1, 1, dtype=torch.float32 if numeric else torch.int64)


def _nest(space: gym.Space[Any]) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {name: _nest(part) for name, part in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_nest(part) for part in space)
    return space


class ModelPolicy(Policy):
    """The policy of a model on one train batch.

    Args:
        model: the model.
        features: which numbers of an observation are the variable.
        columns: what the model reads of each row, `[B, ...]`, or `[B, T, ...]` of each sequence's steps.
        state: what it reads of each sequence, `[B, ...]`; empty for models without a memory.
        distribution: what the model's outputs parametrise.
    """

    def __init__(
        self,
        model: TorchModelV2,
        features: Features,
        columns: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        distribution: ActionDistribution,
    ) -> None:
        super().__init__(distribution)
        self._model, self._features = model, features
        self._columns, self._state = columns, state
        self._lead = 2 if state else 1
        flat = columns[SampleBatch.OBS].flatten(self._lead)
        self.obs, self._fixed = features.split(flat)

    def __call__(self, obs: Tensor) -> Tensor:
        rows = obs.shape[: self._lead]
        whole = self._features.join(obs, self._fixed)
        columns = dict(self._columns)
        columns[SampleBatch.OBS] = whole.reshape(columns[SampleBatch.OBS].shape)
        if self._state:
            columns = {name: column.flatten(0, 1) for name, column in columns.items()}
        batch = SampleBatch(columns)
        batch.set_training(True)
        state = [value for name, value in self._state.items() if name != SampleBatch.SEQ_LENS]
        outputs, _ = self._model(batch, state, self._state.get(SampleBatch.SEQ_LENS))
        return outputs.reshape(*rows, outputs.shape[-1])

    def values(self, obs: Tensor) -> Tensor:
        """V of the model, `[B, ..., d] -> [B, ...]`."""
        self(obs)
        return self._model.value_function().reshape(obs.shape[: self._lead])

    def select(self, index: Tensor) -> ModelPolicy:
        return self._with(lambda column: column[index])

    def repeat(self, count: int) -> ModelPolicy:
        return self._with(lambda column: torch.cat([column] * count))

    def _with(self, change: Any) -> ModelPolicy:
        columns = {name: change(column) for name, column in self._columns.items()}
        state = {name: change(value) for name, value in self._state.items()}
        return ModelPolicy(self._model, self._features, columns, state, self.distribution)


@dataclass(frozen=True)
class ModelCritic:
    """V(s + δ) of one train batch; follows its rows through `select`."""

    policy: ModelPolicy

    def __call__(self, obs: Tensor) -> Tensor:
        return self.policy.values(obs)

    def select(self, index: Tensor) -> ModelCritic:
        return ModelCritic(self.policy.select(index))


def model_sample(
    model: TorchModelV2,
    batch: SampleBatch,
    *,
    features: Features,
    distribution: ActionDistribution,
    policy_loss: PolicyLoss,
) -> Sample:
    """A train batch as a regularizer sees it; rows of recurrent models are padded sequences."""
    memory = sorted(
        (name for name in batch if name.startswith("state_in_")), key=lambda name: (len(name), name)
    )
    state = {name: batch[name] for name in memory}
    names = [name for name in model.view_requirements if name in batch and not name.startswith(_STATE)]
    given = {name: batch[name] for name in {SampleBatch.OBS, *names} - {SampleBatch.SEQ_LENS}}
    rows = {name: column for name, column in given.items() if isinstance(column, Tensor)}
    wanted = (SampleBatch.ACTIONS, SampleBatch.ACTION_LOGP, Postprocessing.ADVANTAGES)
    actions, log_probs, advantages = (batch[name] for name in wanted)
    mask = None
    if state:
        lengths = batch[SampleBatch.SEQ_LENS]
        state[SampleBatch.SEQ_LENS] = lengths
        shape = (len(lengths), len(actions) // len(lengths))
        rows = {name: column.unflatten(0, shape) for name, column in rows.items()}
        actions, log_probs, advantages = (c.unflatten(0, shape) for c in (actions, log_probs, advantages))
        mask = torch.arange(shape[1], device=lengths.device) < lengths.unsqueeze(-1)
    policy = ModelPolicy(model, features, rows, state, distribution)
    return Sample(
        policy=policy,
        obs=policy.obs,
        outputs=policy(policy.obs),
        mask=mask,
        actions=actions,
        log_probs=log_probs,
        advantages=advantages,
        policy_loss=policy_loss,
        values=ModelCritic(policy),
    )


@contextmanager
def undisturbed(model: TorchModelV2) -> Iterator[None]:
    """Give the model back what it remembers of its last forward pass, which `value_function` reads."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in set(vars(module)) - set(attributes):
                del vars(module)[name]
            vars(module).update(attributes)
