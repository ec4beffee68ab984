"""Ray workers that share the attacked rows of an evaluation, where these are worth it."""

from __future__ import annotations

import logging
import math
import os
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


class WorkerPool(ExitStack):
    """Plays attacked rows in this process or by Ray workers, which end with the context.

    With 1 worker there are none; with None there is one a core, as soon as the rows that are left are worth
    their start.
    """

    def __init__(self, evaluator: Evaluator, *, workers: int | None) -> None:
        super().__init__()
        self._evaluator, self._workers = evaluator, workers
        self._actors: Any = None

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
            episodes = suite.selection_episodes if task.selection else suite.episodes
            self._evaluator.finished(task.attack, episodes)
            self._evaluator.tell(task.attack.name)
            yield result

    def _has_actors(self, tasks: int) -> bool:
        """Whether there are workers for so many tasks; they are started now if they are worth it."""
        if tasks < 2 or self._workers == 1:
            return False
        long = (self._evaluator.time.seconds() or 0.0) >= _WORTH
        if self._actors is None and (self._workers is not None or (long and _may_spread())):
            try:
                self._actors = self.enter_context(_started(self._evaluator, self._workers, tasks=tasks))
            except Exception as error:
                if self._workers is not None:
                    raise
                _LOGGER.info("evaluating in this process alone: %s", error)
            if self._actors is None:
                self._workers = 1
        return self._actors is not None


@contextmanager
def _started(evaluator: Evaluator, workers: int | None, *, tasks: int) -> Iterator[Any]:
    """Ray actors, ready to play; None where no number is given, and there are no cores for two.

    Ray is started where it is not running.
    """
    import ray
    from ray.util import ActorPool

    from marl_aajr.training.cluster import ray_for
    from marl_aajr.training.resources import Resources

    with ray_for(Resources()):
        free = ray.available_resources()
        room = min(tasks, free.get("CPU", 0), free.get("memory", math.inf) // _BYTES)
        count = int(room) if workers is None else workers
        if count < 2:
            yield None
            return
        make = ray.remote(num_cpus=1)(_Worker).remote
        alike = ("victim", "spec", "suite", "agents", "units", "seed", "opponents")
        shared = {name: getattr(evaluator, name) for name in alike}
        actors = [make(**shared, num_envs=evaluator.env.num_envs) for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in actors])
            evaluator.time.begin(workers=count)
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


class _Worker:
    """An evaluator in a process of its own."""

    def __init__(self, *, num_envs: int, **shared: Any) -> None:
        torch.set_num_threads(1)
        self._evaluator = Evaluator(**shared, env=make_batch(shared["spec"], num_envs, flat=True))

    def ready(self) -> None:
        """Answer once the environment is there."""

    def play(self, task: AttackTask) -> AttackOutcome | tuple[float, ...]:
        return self._evaluator.play(task)
