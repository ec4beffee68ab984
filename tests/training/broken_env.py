"""Environments that misbehave after a while, by import path."""

from __future__ import annotations

from typing import Any

from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper


class _Raises(BaseParallelWrapper):
    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, actions: Any) -> Any:
        self.steps += 1
        if self.steps == 40:
            raise ZeroDivisionError("the simulator has crashed")
        return super().step(actions)


def raises() -> Any:
    """Raises in its 40th step."""
    return _Raises(simple_spread_v3.parallel_env(N=2))
