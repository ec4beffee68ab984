"""The copies of a batch in shares: this process plays the first, others play theirs at the same time."""

from __future__ import annotations

import logging
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_copies import CopySpaces, GameCopies
from marl_aajr.rollout.game_process import GameProcess, SharedRecords, borrowed, give_back, packed

_LOGGER = logging.getLogger("marl_aajr")
_WORTH = 8
"""Copies for which an optional process is worth waking at every step."""


@dataclass(frozen=True)
class Processes:
    """The processes that play the copies of a batch, the one that asks among them.

    Attributes:
        count: Their number, 1 or more; no process is without a copy.
        optional: Whether there may be fewer: where each would have little to do, or the environment cannot be
            built in another process.
    """

    count: int = 1
    optional: bool = False

    def bounds(self, copies: int) -> list[int]:
        """The first copy of each process, and behind the last one the number of all copies."""
        count = min(self.count, max(1, copies // _WORTH) if self.optional else copies)
        return [i * copies // count for i in range(count + 1)]


_around: ContextVar[Processes | None] = ContextVar("processes", default=None)


@contextmanager
def in_processes(processes: Processes) -> Iterator[None]:
    """Batches of PettingZoo environments that are built within this block are played by so many processes."""
    token = _around.set(processes)
    try:
        yield
    finally:
        _around.reset(token)


class GameShares:
    """The copies of an environment, each in a record.

    What they play does not depend on the number of processes: a copy's seeds follow from its index.

    Args:
        spec: The environment.
        arrays: Of a copy.
        game: The first copy.
        num_envs: E.
        processes: Who plays; None: those of the innermost `in_processes`, this process alone without one.

    Attributes:
        records: `[E]`, with the dtype `CopySpaces.records`.

    Raises:
        ValueError: The environment cannot be sent to other processes, or built there.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        arrays: CopySpaces,
        game: Game,
        num_envs: int,
        processes: Processes | None = None,
    ) -> None:
        processes = processes or _around.get() or Processes()
        self._spec, self._arrays = spec, arrays
        self._others: list[GameProcess] = []
        self._bounds = processes.bounds(num_envs)
        if len(self._bounds) > 2:
            self._memory = SharedRecords(arrays.records, num_envs)
            self.records, handle = self._memory.array, self._memory.handle
            self._release = weakref.finalize(self, _released, self._others, handle)
            try:
                self._engage()
            except Exception as error:
                self.close_others()
                if not processes.optional:
                    raise
                _LOGGER.info("playing in this process alone: %s", error)
                self._bounds = [0, num_envs]
        else:
            self.records = np.zeros(num_envs, arrays.records)
        self.own = GameCopies(spec, arrays, self.records[: self._bounds[1]], games=[game])

    def reset(self, seed: int) -> None:
        """Begin the first episodes, with new processes if one is lost."""
        if not all(process.usable for process in self._others):
            self._engage()
        self.each("reset", seed)

    def each(self, what: str, *args: Any) -> list[Any]:
        """The answers of all shares to a method of `GameCopies`, at work at the same time.

        Where several raise an error, that of the first copy is raised when all have answered.
        """
        for process in self._others:
            process.ask(what, *args)
        answers: list[Any] = []
        errors: list[Exception] = []
        own: Callable[[], Any] = partial(getattr(self.own, what), *args)
        for answer in (own, *(process.answer for process in self._others)):
            try:
                answers.append(answer())
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def step(self, *args: Any) -> list[dict[str, Any]]:
        """The infos of all copies after `GameCopies.step`; those that are not sent are empty."""
        told = zip(self.each("step", *args), pairwise(self._bounds), strict=True)
        return [infos for share, (first, end) in told for infos in share or [{}] * (end - first)]

    def at(self, copy: int, what: str, *args: Any) -> Any:
        """The answer of the share of one copy."""
        share = bisect_right(self._bounds, copy) - 1
        if share == 0:
            return getattr(self.own, what)(*args)
        process = self._others[share - 1]
        process.ask(what, *args)
        return process.answer()

    def close(self) -> None:
        """Close all copies."""
        self.own.close()
        self.close_others()

    def close_others(self) -> None:
        """Close the copies of other processes, which others may use then."""
        if len(self._bounds) > 2:
            self._release()

    def _engage(self) -> None:
        give_back(self._others)
        self._others[:] = []
        code = packed(self._spec, self._arrays)
        self._others[:] = borrowed(len(self._bounds) - 2)
        for process, (first, end) in zip(self._others, pairwise(self._bounds[1:]), strict=True):
            process.build(code, self._memory, range(first, end), self._spec.name)
        for process in self._others:
            try:
                process.answer()
            except ValueError as error:
                raise ValueError(
                    f"expected an environment that other processes can build, got {self._spec.name} "
                    f"({error}); name the module that registers it (my_package:MyEnv-v0), or play it in 1 "
                    "process"
                ) from error


def _released(processes: list[GameProcess], handle: int) -> None:
    give_back(processes)
    processes.clear()
    os.close(handle)
