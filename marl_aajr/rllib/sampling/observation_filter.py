"""Running normalisation of observations, one set of statistics per module.

RLlib's `MeanStdFilter` is not used. Its merge over several env runners takes the change of a runner's mean
for the mean of its new samples (`ray/rllib/utils/filter.py`, `RunningStat.push` and `update`): with two
runners and data of mean 5 its mean falls to 2.5 at the second merge and to 1.3 at the fifth. It also refuses
agents with different observation shapes, and it gives the agents of a shared policy different units.

`ObservationNormalizer` is a connector of RLlib's; `BatchFilter` has its statistics on a device while arrays
are sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from torch import Tensor

from marl_aajr.core.environment_values import STATE, own_key, split
from marl_aajr.victims.filters import ObservationFilter

CLIP = 10.0
"""Normalised observations stay within ± this, as in RLlib's filter."""

_SMALL = 1e-6
"""RLlib's `SMALL_NUMBER`, added to the standard deviation."""


class Moments:
    """Count, mean and sum of squared deviations of a stream of arrays, in float64 (Chan et al. 1983)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(shape)
        self.squares: NDArray[np.float64] = np.zeros(shape)

    @property
    def std(self) -> NDArray[np.float32]:
        """The sample standard deviation; 0 before the second sample."""
        variance = self.squares / max(self.count - 1, 1)
        return np.sqrt(variance.astype(np.float32))

    def push(self, samples: NDArray[Any]) -> None:
        """Take in `samples [n, *shape]`."""
        rows = samples.astype(np.float64)
        mean = rows.mean(0)
        self._add(len(rows), mean, np.square(rows - mean).sum(0))

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        self._add(other.count, other.mean, other.squares)

    def _add(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + np.square(delta) * (self.count * count / total)
        self.count = total

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.copy(), "squares": self.squares.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Moments:
        moments = cls(state["mean"].shape)
        moments.count = state["count"]
        moments.mean, moments.squares = state["mean"].copy(), state["squares"].copy()
        return moments


class ObservationNormalizer(ConnectorV2):
    """Replaces each observation x in its episode by clip((x − mean) / (std + 1e-6), −10, 10).

    The statistics of a module cover all its agents and include the observations at hand. In a Dict
    observation only the array is normalised, and `state`, what a centralised critic reads.
    Everything downstream, the learner included, sees normalised observations: ε is in their units.

    Attributes:
        frozen: whether the statistics stand still, as they must while a policy is judged.
        total: the statistics of the observations that all runners have seen, of each module that has some.
        recent: of those that this one has seen since the last merge.
    """

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.frozen = False
        self.total: dict[str, Moments] = {}
        self.recent: dict[str, Moments] = {}

    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **_: Any) -> dict[str, Any]:
        stepped: dict[str, list[Any]] = defaultdict(list)
        for episode in self.single_agent_episode_iterator(episodes):
            stepped[episode.module_id].append(episode)
        for module, members in stepped.items():
            observations = [episode.get_observations(-1) for episode in members]
            raw = np.stack([_filtered(obs) for obs in observations])
            if not self.frozen:
                for moments in (self.total, self.recent):
                    moments.setdefault(module, Moments(raw.shape[1:])).push(raw)
            for episode, obs, row in zip(members, observations, self.normalize(module, raw), strict=True):
                episode.set_observations(at_indices=-1, new_data=_replaced(obs, row))
        return batch

    def normalize(self, module: str, raw: NDArray[Any]) -> NDArray[Any]:
        """Raw observations `[n, ...]` of a module as all downstream see them; they are not counted."""
        moments = self.total.get(module) or Moments(raw.shape[1:])
        scaled = (raw - moments.mean) / (moments.std + _SMALL)
        return np.clip(scaled, -CLIP, CLIP).astype(raw.dtype)

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        return {
            "total": {module: moments.get_state() for module, moments in self.total.items()},
            "recent": {module: moments.get_state() for module, moments in self.recent.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.total = {module: Moments.from_state(saved) for module, saved in state["total"].items()}
        self.recent = {}

    def reset_state(self) -> None:
        self.total, self.recent = {}, {}

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Add what the other runners have seen since the last merge."""
        for state in states:
            for module, saved in state["recent"].items():
                recent = Moments.from_state(saved)
                self.total.setdefault(module, Moments(recent.mean.shape)).merge(recent)
        return self.get_state()

    def victims_filter(self, module: str, shape: tuple[int, ...]) -> ObservationFilter:
        """The statistics as they are, for a victim whose observations have this shape.

        Behind an agent's own numbers come those of a centralised critic, if there is one.
        """
        moments = self.total.get(module) or Moments(shape)
        mean, std = (
            torch.tensor(part.ravel()[: prod(shape)].reshape(shape)) for part in (moments.mean, moments.std)
        )
        return ObservationFilter(mean=mean, std=std, clip=CLIP)


def _filtered(obs: Any) -> NDArray[Any]:
    """The part of an observation that is normalised."""
    own = np.asarray(split(obs)[0])
    return np.concatenate([own.ravel(), obs[STATE].ravel()]) if _has_state(obs) else own


def _replaced(obs: Any, row: NDArray[Any]) -> Any:
    """An observation with that part of it replaced."""
    if not isinstance(obs, Mapping):
        return row
    key = own_key(obs)
    if not _has_state(obs):
        return {**obs, key: row}
    own, state = np.split(row, [obs[key].size])
    return {**obs, key: own.reshape(obs[key].shape), STATE: state.reshape(obs[STATE].shape)}


def _has_state(obs: Any) -> bool:
    """Whether a centralised critic's state stands beside an observation (or its space)."""
    return isinstance(obs, Mapping) and STATE in obs.keys() - {own_key(obs)}


class TensorMoments:
    """`Moments` as float64 tensors on a device."""

    def __init__(self, moments: Moments, device: torch.device) -> None:
        self.count = moments.count
        self.mean = torch.as_tensor(moments.mean, device=device)
        self.squares = torch.as_tensor(moments.squares, device=device)

    @property
    def std(self) -> Tensor:
        """The sample standard deviation, float32."""
        return (self.squares / max(self.count - 1, 1)).float().sqrt()

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Take in what others have seen; see `Moments`."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = torch.add(self.mean, delta, alpha=count / total)
        correction = delta.square_().mul_(self.count * count / total)
        self.squares = self.squares + squares + correction
        self.count = total

    def to_moments(self) -> Moments:
        """As the normaliser keeps them."""
        arrays = {"mean": self.mean.numpy(force=True), "squares": self.squares.numpy(force=True)}
        return Moments.from_state({"count": self.count, **arrays})


class BatchFilter:
    """A normaliser's statistics, on a device for the length of a sampling call.

    Args:
        normalizer: The connector that the statistics come from and go to.
        device: Device of the observations.
    """

    def __init__(self, normalizer: ObservationNormalizer, device: torch.device) -> None:
        self._normalizer = normalizer
        self._device = device

    def load(self) -> None:
        """Take the statistics over from the normaliser."""
        self._total, self._recent = (
            {module: TensorMoments(moments, self._device) for module, moments in part.items()}
            for part in (self._normalizer.total, self._normalizer.recent)
        )

    def store(self) -> None:
        """Hand the statistics back."""
        self._normalizer.total = {name: moments.to_moments() for name, moments in self._total.items()}
        self._normalizer.recent = {name: moments.to_moments() for name, moments in self._recent.items()}

    def __call__(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        """Observations `[N, ...]` normalised; those in `rows [N]` bool (None: all) are counted."""
        if not self._normalizer.frozen:
            self._count(module, obs if rows is None else obs[rows])
        moments = self._total.get(module)
        if moments is None:
            moments = TensorMoments(Moments(tuple(obs.shape[1:])), self._device)
        scaled = (obs - moments.mean) / (moments.std + _SMALL)
        return scaled.clamp_(-CLIP, CLIP).to(obs.dtype)

    def _count(self, module: str, seen: Tensor) -> None:
        if not len(seen):
            return
        seen = seen.double()
        mean = seen.mean(0)
        squares = (seen - mean).square_().sum(0)
        for moments in (self._total, self._recent):
            if module not in moments:
                moments[module] = TensorMoments(Moments(tuple(mean.shape)), self._device)
            moments[module].add(len(seen), mean, squares)
