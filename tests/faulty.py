"""Two agents of simple_spread in whose game something goes wrong because of a file, by import path."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper

ONCE = ("crashes", "dies", "hangs")
"""What happens once: the process that does it takes the file away first."""


class _Faulty(BaseParallelWrapper):
    """Breaks one promise while a file exists, or once after some steps in which it existed."""

    played = 0
    """Steps of all copies in this process while the file existed."""

    def __init__(self, env: Any, when: Path, how: str, after: int) -> None:
        super().__init__(env)
        self.when, self.how, self.after = when, how, after

    def step(self, actions: Any) -> Any:
        if self.how in ONCE:
            self._act_once()
        if self._is_due("raises"):
            raise ZeroDivisionError("the simulator has crashed")
        obs, rewards, *rest = super().step(actions)
        if self._is_due("nan"):
            rewards["agent_1"] = float("nan")
        return obs, rewards, *rest

    def _is_due(self, how: str) -> bool:
        return self.how == how and self.when.exists()

    def _act_once(self) -> None:
        _Faulty.played += self.when.exists()
        if _Faulty.played <= self.after:
            return
        try:
            self.when.unlink()
        except FileNotFoundError:  # One process alone takes it away.
            return
        _Faulty.played = 0
        if self.how == "hangs":
            time.sleep(1e6)
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("the simulator has crashed")


def faulty(when: str, how: str, after: int = 0) -> Any:
    """While the file `when` exists: `raises`, or gives a `nan`.

    Or once, after so many steps of all copies in which it existed: `crashes`, `dies` with its process, or
    `hangs`; the file is taken away.
    """
    return _Faulty(simple_spread_v3.parallel_env(N=2), Path(when), how, after)


def gone(licence: str) -> Any:
    """Cannot be made without the file."""
    if not Path(licence).exists():
        raise ValueError("expected a licence, got none")
    return simple_spread_v3.parallel_env(N=2)
