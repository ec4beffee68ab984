"""An environment with any spaces, and modules that RLlib did not write."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from pettingzoo.utils.env import ParallelEnv
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

LENGTH = 4


class AnySpaces(ParallelEnv[str, Any, Any]):
    """Two agents who see noise of any shape for a few steps; with `masked`, one action is forbidden."""

    metadata = {"name": "any_spaces_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self, *, shape: tuple[int, ...] = (6,), box_actions: bool = False, masked: bool = False, key: str = ""
    ) -> None:
        self.possible_agents = ["a_0", "a_1"]
        self.shape, self.box_actions, self.masked, self.key = tuple(shape), box_actions, masked, key

    def observation_space(self, agent: str) -> gym.Space[Any]:
        return observed(self.shape, masked=self.masked)

    def action_space(self, agent: str) -> gym.Space[Any]:
        if self.box_actions:
            return gym.spaces.Box(np.array([-2.0, -0.7], np.float32), np.array([-0.1, 3.3], np.float32))
        return gym.spaces.Discrete(5)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.agents = list(self.possible_agents)
        return self._look(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        over = dict.fromkeys(self.agents, self.t >= LENGTH)
        told = self._look()
        infos: dict[str, Any] = {a: {} for a in self.agents}
        rewards = {a: float(np.sum(action)) for a, action in actions.items()}
        self.agents = [] if self.t >= LENGTH else self.agents
        return told, rewards, over, dict.fromkeys(over, False), infos

    def _look(self) -> dict[str, Any]:
        rows = {a: self.rng.normal(size=self.shape).astype(np.float32) for a in self.agents}
        if not self.masked:
            return rows
        legal = np.array([1, 0, 1, 1, 1], np.int8)
        return {a: {"observation": row, "action_mask": legal} for a, row in rows.items()}


def observed(shape: tuple[int, ...], *, masked: bool = False, key: str = "observation") -> gym.Space[Any]:
    box = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    if not masked:
        return box
    return gym.spaces.Dict({key: box, "action_mask": gym.spaces.Box(0, 1, (5,), np.int8)})


class MaskReader(TorchRLModule):
    """Takes what is legal for a feature, too, and takes its observations apart in place."""

    def setup(self) -> None:
        self.net = nn.Linear(6 + 5, 5)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        mask = batch[Columns.OBS].pop("action_mask")
        seen = torch.cat([batch[Columns.OBS].pop("observations"), mask.float()], -1)
        return {Columns.ACTION_DIST_INPUTS: self.net(seen).masked_fill(mask == 0, -1e9)}


class Leaky(TorchRLModule):
    """A memory of its own kind: what it saw fades."""

    def setup(self) -> None:
        self.width = self.observation_space.shape[0]
        self.net = nn.Linear(self.width, 5)

    def get_initial_state(self) -> dict[str, Any]:
        return {"trace": np.full(self.width, 0.5, np.float32)}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        trace, obs = batch[Columns.STATE_IN]["trace"], batch[Columns.OBS]
        traces = []
        for t in range(obs.shape[1]):
            trace = 0.9 * trace + obs[:, t]
            traces.append(trace)
        outputs = self.net(torch.stack(traces, 1))
        return {Columns.ACTION_DIST_INPUTS: outputs, Columns.STATE_OUT: {"trace": trace}}


class Shift(ConnectorV2):
    """Something that happens to observations between environment and modules."""

    def __call__(self, *, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return batch

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"by": 1.0}
