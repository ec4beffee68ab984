"""Attacked rows are played by this process, or by Ray workers that share them, to the same numbers."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from marl_aajr.evaluation.evaluator import AttackTask, Evaluator
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.rollout.environments import make_batch

_WORTH = 20.0
"""Seconds of work from which on workers are worth their start, which takes about five."""

_BYTES = 1 << 30
"""What a worker may need of memory."""

_LOGGER = logging.getLogger(__name__)


class WorkerPool:
    """Plays attacked rows in this process or by Ray workers.

    Args:
        evaluator: of this process.
        workers: number of workers; 1: none; None: one a core, once what is left is worth their start.
        stack: closes the workers.
    """

    def __init__(self, evaluator: Evaluator, *, workers: int | None, stack: ExitStack) -> None:
        self._evaluator, self._workers, self._stack = evaluator, workers, stack
        self._actors: Any = None
        self._started, self._done = time.monotonic(), evaluator.done

    def play(self, tasks: Sequence[AttackTask]) -> list[Any]:
        """The results of `Evaluator.play` in the order of the tasks, whichever finishes first."""
        results: list[Any] = []
        while len(results) < len(tasks):
            left = tasks[len(results) :]
            if self._has_actors(len(left)):
                return [*results, *self._shared(left)]
            results.append(self._evaluator.play(left[0]))
        return results

    def _shared(self, tasks: Sequence[AttackTask]) -> Iterator[Any]:
        played = self._actors.map(lambda actor, task: actor.play.remote(task), tasks)
        suite = self._evaluator.suite
        for task, result in zip(tasks, played, strict=True):
            self._evaluator.done += suite.selection_episodes if task.selection else suite.episodes
            self._evaluator.tell(task.attack.name)
            yield result

    def _has_actors(self, tasks: int) -> bool:
        """Whether there are workers for so many tasks; they are started now if they are worth it."""
        if tasks < 2 or self._workers == 1:
            return False
        if self._actors is None and (self._workers is not None or self._seconds_left() >= _WORTH):
            self._start(tasks)
        return self._actors is not None

    def _start(self, tasks: int) -> None:
        try:
            self._actors = self._stack.enter_context(_started(self._evaluator, self._workers, tasks=tasks))
        except Exception as error:
            if self._workers is not None:
                raise
            _LOGGER.info("evaluating in this process alone: %s", error)
        if self._actors is None:
            self._workers = 1

    def _seconds_left(self) -> float:
        """Seconds at the speed until now, which is that of the cheaper attacks: they come first."""
        done, left = self._evaluator.done - self._done, self._evaluator.total - self._evaluator.done
        return left * (time.monotonic() - self._started) / done if done else 0.0


@contextmanager
def worker_pool(evaluator: Evaluator, *, workers: int | None) -> Iterator[WorkerPool]:
    """A pool of so many Ray workers; 1: of this process alone; None: of what the work is worth."""
    with ExitStack() as stack:
        yield WorkerPool(evaluator, workers=workers, stack=stack)


@contextmanager
def _started(evaluator: Evaluator, workers: int | None, *, tasks: int) -> Iterator[Any]:
    """Ray actors, ready to play; None where no number is given, and there are no cores for two.

    Ray is started where it is not running.
    """
    import ray
    from ray.util import ActorPool

    from marl_aajr.training.cluster import ray_for
    from marl_aajr.training.config import Resources

    if workers is None and not _may_spread():
        yield None
        return
    with ray_for(Resources()):
        count = _room(tasks) if workers is None else workers
        if count < 2:
            yield None
            return
        make = ray.remote(num_cpus=1)(_Worker).remote
        shared = {name: getattr(evaluator, name) for name in _SHARED}
        actors = [make(**shared, num_envs=evaluator.env.num_envs) for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in actors])
            yield ActorPool(actors)
        finally:
            for actor in actors:
                ray.kill(actor)


def _may_spread() -> bool:
    """Whether several cores may be had without asking: not within a task of Ray, which has its own."""
    import ray

    if ray.is_initialized():
        return ray.get_runtime_context().worker.mode != ray.WORKER_MODE
    return "RAY_ADDRESS" in os.environ or (os.cpu_count() or 1) > 1


def _room(tasks: int) -> int:
    """How many workers Ray has cores and memory for now, of as many as there are tasks."""
    import ray

    free = ray.available_resources()
    return int(min(tasks, free.get("CPU", 0), free.get("memory", math.inf) // _BYTES))


_SHARED = ("victim", "spec", "suite", "agents", "units", "seed")
"""Attributes that the evaluators of all processes have in common."""


class _Worker:
    """An evaluator in a process of its own."""

    def __init__(self, *, num_envs: int, **shared: Any) -> None:
        torch.set_num_threads(1)
        self._evaluator = Evaluator(**shared, env=make_batch(shared["spec"], num_envs))

    def ready(self) -> None:
        """Answer once the environment is there."""

    def play(self, task: AttackTask) -> AttackOutcome | tuple[float, ...]:
        return self._evaluator.play(task)
