"""An environment in which something goes wrong once, by import path."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper


class _Fragile(BaseParallelWrapper):
    """In the first step that finds a file, removes it and raises, or takes its process with it."""

    def __init__(self, env: Any, when: Path, how: str) -> None:
        super().__init__(env)
        self.when, self.how = when, how

    def step(self, actions: Any) -> Any:
        with suppress(FileNotFoundError):  # One process alone removes it.
            self.when.unlink()
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionResetError("the simulator has hung up")
        return super().step(actions)


def fragile(when: str, how: str) -> Any:
    """Two agents of simple_spread."""
    return _Fragile(simple_spread_v3.parallel_env(N=2), Path(when), how)
