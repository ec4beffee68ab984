"""Two agents of simple_spread, with faults that depend on files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper


class _CrashesOnce(BaseParallelWrapper):
    played = 0

    def __init__(self, env: Any, marker: Path) -> None:
        super().__init__(env)
        self.marker = marker

    def step(self, actions: Any) -> Any:
        _CrashesOnce.played += not self.marker.exists()
        if _CrashesOnce.played > 250 and not self.marker.exists():
            self.marker.touch()
            raise ZeroDivisionError("the simulator has crashed")
        return super().step(actions)


class _HangsOnce(BaseParallelWrapper):
    played = 0

    def __init__(self, env: Any, marker: Path) -> None:
        super().__init__(env)
        self.marker = marker

    def step(self, actions: Any) -> Any:
        _HangsOnce.played += self.marker.exists()
        if _HangsOnce.played > 250 and self.marker.exists():
            self.marker.unlink()
            time.sleep(1e6)
        return super().step(actions)


def once(marker: str) -> Any:
    """Crashes after 250 steps of all copies where the file is not there, and makes it."""
    return _CrashesOnce(simple_spread_v3.parallel_env(N=2), Path(marker))


def hung(marker: str) -> Any:
    """After 250 steps of all copies with the file there, takes the file away and hangs for ever."""
    return _HangsOnce(simple_spread_v3.parallel_env(N=2), Path(marker))


def gone(licence: str) -> Any:
    """Cannot be made without the file."""
    if not Path(licence).exists():
        raise ValueError("expected a licence, got none")
    return simple_spread_v3.parallel_env(N=2)
