"""Environments that fail: always, or once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper


class _Faulty(BaseParallelWrapper):
    def __init__(self, env: Any, marker: Path | None, after: int) -> None:
        super().__init__(env)
        self.marker, self.left = marker, after

    def step(self, actions: Any) -> Any:
        self.left -= 1
        if self.left < 0 and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            raise ZeroDivisionError("the simulator has crashed")
        return super().step(actions)


def always() -> Any:
    """Two agents of simple_spread, whose simulator crashes in its first step."""
    return _Faulty(simple_spread_v3.parallel_env(N=2), None, 0)


def once(marker: str) -> Any:
    """The same, which crashes after 60 steps where the file is not there, and makes it."""
    return _Faulty(simple_spread_v3.parallel_env(N=2), Path(marker), 60)
