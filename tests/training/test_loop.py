"""One iteration whose env runners are lost, without Ray and without waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from marl_aajr.training import loop

LONG = 1000.0
"""Seconds of an iteration: more than a run waits for env runners."""


class Losing:
    """An algorithm whose env runners are gone in its first iterations."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.now = times, 0.0
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.pass_by))

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def train(self) -> dict[str, Any]:
        self.pass_by(LONG)
        self.left -= 1
        return {} if self.left >= 0 else {"env_runners": {NUM_ENV_STEPS_SAMPLED: 8}}


def test_an_iteration_is_repeated_however_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm: Any = Losing(1, monkeypatch)
    assert loop.train_once(algorithm, None)["env_runners"] == {NUM_ENV_STEPS_SAMPLED: 8}
    assert algorithm.now == LONG + 1 + LONG


def test_runners_that_do_not_come_back_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm: Any = Losing(1_000_000, monkeypatch)
    with pytest.raises(loop.ProcessesLostError, match="no env runner has come back for 120 s"):
        loop.train_once(algorithm, None)
