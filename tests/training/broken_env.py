"""An environment that misbehaves from a moment on, by import path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper


class _Breaks(BaseParallelWrapper):
    """Breaks one promise as soon as a file exists."""

    def __init__(self, env: Any, when: Path, how: str) -> None:
        super().__init__(env)
        self.when, self.how = when, how

    def _breaks(self, how: str) -> bool:
        return self.how == how and self.when.exists()

    def observation_space(self, agent: str) -> Any:
        wider = self._breaks("spaces") and agent == "agent_1"
        return spaces.Box(-np.inf, np.inf, (13,), np.float32) if wider else super().observation_space(agent)

    def step(self, actions: Any) -> Any:
        if self._breaks("raises"):
            raise ZeroDivisionError("the simulator has crashed")
        obs, rewards, *rest = super().step(actions)
        if self._breaks("nan"):
            rewards["agent_1"] = float("nan")
        if self._breaks("shape"):
            obs["agent_1"] = obs["agent_1"][:4]
        return obs, rewards, *rest


def breaks(when: str, how: str) -> Any:
    """Two agents of simple_spread."""
    return _Breaks(simple_spread_v3.parallel_env(N=2), Path(when), how)
