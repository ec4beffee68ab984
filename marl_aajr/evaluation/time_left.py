"""The time that an evaluation takes: estimated before its attacks begin, then corrected by what they take.

    seconds of a row = rounds · (c + t · s)

A round is an episode of every copy. The clean rows tell c, its seconds without attack, and t, its steps; a
call of each attack on decisions that they met tells s, its seconds in a step. Adversaries that are yet to be
trained count too: see `FittedAttack.seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil
from statistics import fmean

import torch
from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.core.compiled import kernels_compiled
from marl_aajr.victims.stepper import DecisionBatch

_LONG = 1.0
"""Seconds that all rows must take, even if attacks took none, for attacks to be called beforehand."""


class TimeLeft:
    """The expected seconds of all that follows the clean rows; a `StepCallback`, which watches those."""

    def __init__(self, num_envs: int) -> None:
        kernels_compiled()  # now, as their compilation is no play
        self._num_envs, self._steps = num_envs, 0
        self._first: Sequence[DecisionBatch] = ()
        self._seconds: dict[Attack | None, float] = {}
        self._left = 0.0
        self.begin()

    def __call__(self, batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        if not self._steps:
            self._begun, self._first = time.monotonic(), batches
        self._steps += 1

    def learn(
        self,
        rows: Sequence[tuple[Attack | None, int]],
        *,
        played: int,
        call: Callable[[Attack, Sequence[DecisionBatch]], int],
    ) -> None:
        """Learn the seconds of a round, when the clean rows, so many episodes, are over; expect all others.

        A row is an attack and its episodes; `call` attacks the decisions of one step, in as many rows at once
        as it returns.
        """
        rounds = ceil(played / self._num_envs)
        clean = (time.monotonic() - self._begun) / rounds
        self._seconds = {None: clean}
        if sum(self.row(None, episodes) for _, episodes in rows) >= _LONG:
            attacks = {attack.at(1.0): attack for attack, _ in rows if attack is not None}
            for key, attack in attacks.items():
                if attack.ready and not attack.acts_jointly:
                    with torch.random.fork_rng(devices=[]):  # a policy may draw, however long this takes
                        call(attack, self._first)  # the first call takes longer than all others
                        begun = time.monotonic()
                        together = call(attack, self._first)
                    taken = (time.monotonic() - begun) / together
                    self._seconds[key] = clean + self._steps / rounds * taken
        self._left = sum(self.row(attack, episodes) for attack, episodes in rows)

    def row(self, attack: Attack | None, episodes: int) -> float:
        """Expected seconds of a row; an attack that could not be called counts as the mean of the others."""
        if not self._seconds:
            return 0.0
        key = None if attack is None else attack.at(1.0)
        seconds = self._seconds.get(key, fmean(self._seconds.values()))
        return ceil(episodes / self._num_envs) * seconds

    def expect(self, seconds: float) -> None:
        """Count what is to be done."""
        self._left += seconds

    def begin(self, *, workers: int = 1) -> None:
        """Measure the pace from here on, of so many workers."""
        self._begun, self._worked, self._pace = time.monotonic(), 0.0, 1 / workers

    def finish(self, seconds: float) -> None:
        """Count what is done, and measure the pace."""
        self._left -= seconds
        self._worked += seconds
        if self._worked > 0:
            self._pace = (time.monotonic() - self._begun) / self._worked

    def seconds(self, running: float = 0.0) -> float | None:
        """Seconds that are left, when expected seconds of what is running are done; None: not known yet."""
        return max(self._left - running, 0.0) * self._pace if self._seconds else None
