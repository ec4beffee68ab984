"""Running normalisation of observations, one set of statistics per module.

RLlib's `MeanStdFilter` is not used. Its merge over several env runners takes the change of a runner's mean
for the mean of its new samples (`ray/rllib/utils/filter.py`, `RunningStat.push` and `update`): with two
runners and data of mean 5 its mean falls to 2.5 at the second merge and to 1.3 at the fifth. It also refuses
agents with different observation shapes, and it gives the agents of a shared policy different units.

`ObservationNormalizer` is a connector of RLlib's. While arrays are sampled, it is on their device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2
from torch import Tensor

from marl_aajr.core.environment_values import STATE, own_key, split
from marl_aajr.victims.filters import SMALL, ObservationFilter

CLIP = 10.0
"""Normalised observations stay within ± this, as in RLlib's filter."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of a stream of rows, in float64 (Chan et al. 1983).

    They are NumPy arrays where RLlib keeps them, and tensors on a device while arrays are sampled.
    """

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0

    @classmethod
    def of(cls, samples: Any) -> Moments:
        """Those of `samples [n, *shape]`."""
        rows = samples.double() if isinstance(samples, Tensor) else samples.astype(np.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(0))

    @property
    def std(self) -> Any:
        """The sample standard deviation, float32; 0 before the second sample."""
        variance = self.squares / max(self.count - 1, 1)
        return variance.float().sqrt() if isinstance(variance, Tensor) else np.sqrt(np.float32(variance))

    @property
    def spread(self) -> bool:
        """Whether there is a deviation, and so a size of ε in its units."""
        return self.count > 1

    def __add__(self, other: Moments) -> Moments:
        """Of both streams together; the other has a sample at least."""
        total = self.count + other.count
        delta, share = other.mean - self.mean, other.count / total
        if isinstance(delta, Tensor):
            mean: Any = torch.add(torch.as_tensor(self.mean), delta, alpha=share)
        else:
            mean = self.mean + delta * share
        correction = delta**2 * (self.count * other.count / total)
        return Moments(total, mean, self.squares + other.squares + correction)

    def to(self, device: torch.device | None) -> Moments:
        """As tensors on a device; None: as arrays."""
        if device is None:
            return Moments(self.count, self.mean.numpy(force=True), self.squares.numpy(force=True))
        parts = (torch.as_tensor(part, device=device) for part in (self.mean, self.squares))
        return Moments(self.count, *parts)

    def normalize(self, obs: Any) -> Any:
        """Observations `[n, *shape]` as all downstream see them, but for their type."""
        return ((obs - self.mean) / (self.std + SMALL)).clip(-CLIP, CLIP)


class ObservationNormalizer(ConnectorV2):
    """Replaces each observation x in its episode by clip((x − mean) / (std + 1e-6), −10, 10).

    The statistics of a module cover all its agents and include the observations at hand. In a Dict
    observation only the array is normalised, and `state`, what a centralised critic reads.
    Everything downstream, the learner included, sees normalised observations: ε is in their units.

    An observation is normalised as it comes, by what has been seen up to it, and stays so, as with RLlib's
    filter: early rows of a first sample are in units of few observations, and what the learner is given is
    what the module decided on, so that log-probabilities fit. Unlike with RLlib's, the observations that a
    sample begins with are normalised once more, as the runners may have merged what they have seen since:
    those of attacked and other copies would else be in different units.

    Attributes:
        frozen: whether the statistics stand still, as they must while a policy is judged.
        total: the statistics of the observations that all runners have seen, of each module that has some.
        recent: of those that this one has seen since the last merge.
    """

    def __init__(self, *spaces: gym.Space[Any] | None) -> None:
        super().__init__(*spaces)
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
            normalized = self.observe(module, raw).astype(raw.dtype)
            for episode, obs, row in zip(members, observations, normalized, strict=True):
                episode.set_observations(at_indices=-1, new_data=_replaced(obs, row))
        return batch

    def observe(self, module: str, obs: Any, rows: Tensor | None = None) -> Any:
        """Observations `[N, ...]` normalised, float64; those in `rows [N]` bool (None: all) are counted."""
        seen = obs if rows is None else obs[rows]
        if len(seen) and not self.frozen:
            moments = Moments.of(seen)
            for part in (self.total, self.recent):
                part[module] = part.get(module, Moments()) + moments
        return self.total.get(module, Moments()).normalize(obs)

    def to(self, device: torch.device | None) -> None:
        """Move the statistics to the device of the observations, or back: RLlib finds arrays."""
        for part in (self.total, self.recent):
            part |= {module: moments.to(device) for module, moments in part.items()}

    def get_state(self, components: Any = None, *, not_components: Any = None, **_: Any) -> dict[str, Any]:
        return {
            name: {module: vars(moments) for module, moments in part.items()}
            for name, part in (("total", self.total), ("recent", self.recent))
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        _check_state(state)
        self.total = {module: Moments(**saved) for module, saved in state["total"].items()}
        self.recent = {}

    def reset_state(self) -> None:
        self.total, self.recent = {}, {}

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Add what the other runners have seen since the last merge.

        Raises:
            ValueError: States of something else: see `_check_state`.
        """
        for state in states:
            _check_state(state)
            for module, saved in state["recent"].items():
                self.total[module] = self.total.get(module, Moments()) + Moments(**saved)
        return self.get_state()

    def victims_filter(self, module: str, shape: tuple[int, ...]) -> ObservationFilter:
        """The statistics as they are, for a victim whose observations have this shape.

        Behind an agent's own numbers come those of a centralised critic, if there is one.
        """
        moments = self.total.get(module, Moments(0, np.zeros(shape), np.zeros(shape)))
        mean, std = (
            torch.tensor(part.ravel()[: prod(shape)].reshape(shape)) for part in (moments.mean, moments.std)
        )
        return ObservationFilter(mean=mean, std=std, clip=CLIP)


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a state that is no filter's.

    `ConnectorPipelineV2.merge_states` gives the first state of a runner to its first piece, and so on, while
    pieces without a state are left out of it: behind one of these, everybody gets the state of another.
    """
    if state.keys() != {"total", "recent"}:
        raise ValueError(
            "expected the statistics of an ObservationNormalizer from the other env runners, got "
            f"{', '.join(map(str, state)) or 'none'}: RLlib gives connectors the states of others where one "
            "that has no state stands in front; make ObservationNormalizer the first in "
            "env_to_module_connector, and flatten observations in the environment or behind it"
        )


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
