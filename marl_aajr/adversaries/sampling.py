"""Random actions that belong to a copy: the same whatever the number of copies beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, MultiCategorical
from marl_aajr.envs.streams import Streams

_SALT = 0x5EED0FAC
"""The environment hashes the same seed for numbers of its own."""


class ActionChance:
    """Uniform numbers for the actions of all agents, in each copy those of its episode and step.

    Args:
        widths: m, the number of distribution inputs, by agent.
        num_envs: E.
        device: where the numbers are made.
    """

    def __init__(self, widths: Mapping[str, int], num_envs: int, *, device: torch.device) -> None:
        self._widths = dict(widths)
        self._starts = dict(zip(widths, accumulate(widths.values(), initial=0), strict=False))
        self._count = sum(widths.values())
        self._device = device
        self._clock = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._streams = Streams(0, num_envs, device=device)

    def reset(self, *, seed: int) -> None:
        """Begin the first episode of every copy."""
        self._clock.zero_()
        self._streams = Streams(seed ^ _SALT, len(self._clock), device=self._device)
        self._streams.begin()

    def advance(self, over: Tensor) -> None:
        """Move on to the next step; to the next episode in the copies `over` (`[E]` bool)."""
        self._clock = (self._clock + 1).masked_fill(over, 0)
        self._streams.begin(over)

    def sample(self, agent: str, kind: ActionDistribution, inputs: Tensor) -> Tensor:
        """An action of the agent in this step, `[E, m] -> [E, ...]`."""
        place = self._clock * self._count + self._starts[agent]
        uniform = self._streams.uniform(self._widths[agent], start=place).T.float().clamp(1e-7, 1 - 1e-7)
        if isinstance(kind, DiagGaussian):
            mean, log_std = kind.split(inputs)
            noise = torch.erfinv(2 * uniform[..., : kind.k] - 1) * math.sqrt(2)
            return mean + log_std.exp() * noise
        gumbel = -(-uniform.log()).log()
        if isinstance(kind, MultiCategorical):
            return torch.stack([part.argmax(-1) for part in kind.split(inputs + gumbel)], -1)
        return (inputs + gumbel).argmax(-1)

    def get_state(self) -> dict[str, Any]:
        """What `set_state` takes."""
        return {"clock": self._clock.clone(), "streams": self._streams.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self._clock = state["clock"].clone()
        self._streams.set_state(state["streams"])
