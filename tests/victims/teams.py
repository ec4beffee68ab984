"""Victims and filters to test with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.utils.filter import MeanStdFilter
from torch import Tensor, nn

from marl_aajr.victims import (
    ObservationFilter,
    Victim,
)

BOX = gym.spaces.Box(-np.inf, np.inf, (6,), np.float32)
BOUNDED = gym.spaces.Box(np.array([-2.0, -0.7], np.float32), np.array([-0.1, 3.3], np.float32))
ACTIONS: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(5),
    "multi": gym.spaces.MultiDiscrete([2, 3]),
    "box": BOUNDED,
}
OUTPUTS = {"discrete": 5, "multi": 5, "box": 4}


def network(outputs: int, *, features: int = 6, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, outputs))


def victim(kind: str = "discrete", **settings: Any) -> Victim:
    """Two agents who share a module."""
    arguments: dict[str, Any] = {
        "module_of": {"a_0": "shared", "a_1": "shared"},
        "modules": {"shared": network(OUTPUTS[kind])},
        "observation_spaces": {"a_0": BOX, "a_1": BOX},
        "action_spaces": {"a_0": ACTIONS[kind], "a_1": ACTIONS[kind]},
        "env_name": "simple_spread_v3",
        "env_kwargs": {"N": 3},
    }
    return Victim(**(arguments | settings))


def learned_filter(seed: int = 0, shape: tuple[int, ...] = (6,)) -> MeanStdFilter:
    seen = MeanStdFilter(shape)
    rng = np.random.default_rng(seed)
    scale = rng.uniform(1e-3, 50, shape)
    for _ in range(300):
        seen((rng.normal(0.3, 1, shape) * scale).astype(np.float32))
    return seen


def frozen(learned: MeanStdFilter) -> ObservationFilter:
    stats = learned.running_stats
    return ObservationFilter(
        mean=torch.from_numpy(stats.mean), std=torch.from_numpy(stats.std), clip=learned.clip
    )


class FixedLogits(nn.Module):
    """Likes the third action best."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tensor([0.0, 2.0, 3.0, 1.0, 0.0]).expand(len(obs), 5)
