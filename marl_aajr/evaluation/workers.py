"""Attacked rows, played by this process and by Ray workers beside it, to the same numbers.

Rows of one attack that differ in size, agents, actions or episodes are played side by side: their calls of
the attack are answered together (`marl_aajr.attacks.together`). What takes longest comes first, so that
nobody waits long for the last. An attack that must learn from the victim first does so where its rows are
played, while others play.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import torch

from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import Attack, Fault
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.admission import fit
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.row_games import AttackTask, label_of
from marl_aajr.evaluation.threat_rows import play_beside, play_fault
from marl_aajr.rollout.environments import make_batch

_WORTH = 20.0
"""Seconds of work from which on workers are worth their start, which takes about five."""

_BYTES = 1 << 30
"""What a worker may need of memory."""

_LOGGER = logging.getLogger(__name__)


_GLANCE = 0.02
"""Seconds between two looks at what workers have done."""


@dataclass(frozen=True)
class _Group:
    """Rows of one attack, of any sizes, that are played side by side; their places among all tasks."""

    places: tuple[int, ...]
    tasks: tuple[AttackTask, ...]


class WorkerPool(ExitStack):
    """Plays attacked rows in this process, and by Ray workers beside it, which end with the context.

    With 1 worker it is this process alone; with None there is one a core, this process among them, as soon as
    the rows that are left are worth their start.
    """

    def __init__(self, evaluator: Evaluator, *, workers: int | None) -> None:
        super().__init__()
        self._evaluator, self._workers = evaluator, workers
        self._actors: Any = None
        self._fitted: dict[Attack, Attack] = {}

    def play(self, tasks: Sequence[AttackTask]) -> list[Any]:
        """The results of `Evaluator.play` in the order of the tasks, whichever finishes first."""
        waiting = deque(sorted(self._groups(tasks), key=self._seconds, reverse=True))
        done: deque[tuple[_Group, _Answer]] = deque()
        results: dict[int, Any] = {}
        helped = False
        try:
            while len(results) < len(tasks):
                if not helped and self._has_actors(len(waiting)):
                    helped = True
                    for actor in self._actors:
                        Thread(target=_serve, args=(actor, waiting, done), daemon=True).start()
                if (group := _next(waiting)) is not None:
                    self._keep(group, play_fitted(self._evaluator, group.tasks), results)
                elif not done:
                    time.sleep(_GLANCE)
                while done:
                    group, answer = done.popleft()
                    for task in group.tasks:
                        for _ in range(task.plays):
                            self._evaluator.finished(task.attack, self._evaluator.games.episodes(task))
                    self._evaluator.tell(label_of(group.tasks))
                    self._keep(group, answer, results)
        finally:
            waiting.clear()  # nobody goes on where something went wrong
        return [results[place] for place in range(len(tasks))]

    def _groups(self, tasks: Sequence[AttackTask]) -> list[_Group]:
        """The tasks of each attack, as many as are played side by side; all, if it is to be fitted."""
        ready = [replace(task, attack=self._known(task.attack)) for task in tasks]
        alike = grouped((task.attack.at(1.0), place) for place, task in enumerate(ready))
        found = []
        for attack, places in alike.items():
            most = self._evaluator.games.side_by_side(attack) if attack.ready else len(places)
            for part in range(0, len(places), most):
                own = tuple(places[part : part + most])
                found.append(_Group(own, tuple(ready[place] for place in own)))
        return found

    def _known(self, attack: Attack) -> Attack:
        """The attack as it was fitted, if it was."""
        made = None if attack.ready else self._fitted.get(attack.at(1.0))
        return attack if made is None else made.at(attack.perturbations.epsilon)

    def _seconds(self, group: _Group) -> float:
        """What a group may take."""
        first, evaluator = group.tasks[0].attack, self._evaluator
        fit = first.seconds if isinstance(first, FittedAttack) and not first.ready else 0.0
        rows = [
            (task.plays, evaluator.time.row(task.attack, evaluator.games.episodes(task)))
            for task in group.tasks
        ]
        return fit + sum(plays * seconds for plays, seconds in rows)

    def _keep(self, group: _Group, answer: _Answer, results: dict[int, Any]) -> None:
        first, (found, attack) = group.tasks[0].attack, answer
        if isinstance(first, FittedAttack) and not first.ready:
            self._fitted[first.at(1.0)] = attack
            self._evaluator.time.finish(first.seconds)
        results.update(zip(group.places, found, strict=True))

    def _has_actors(self, groups: int) -> bool:
        """Whether there are workers for so many groups; they are started now if they are worth it."""
        if groups < 2 or self._workers == 1:
            return False
        long = (self._evaluator.time.seconds() or 0.0) >= _WORTH
        if self._actors is None and (self._workers is not None or (long and _may_spread())):
            try:
                self._actors = self.enter_context(_started(self._evaluator, self._workers, groups=groups))
            except Exception as error:
                if self._workers is not None:
                    raise
                _LOGGER.info("evaluating in this process alone: %s", error)
            if self._actors is None:
                self._workers = 1
        return self._actors is not None


_Answer = tuple[list[Any], Attack]
"""The results of a group's tasks, and their attack, fitted."""


def play_fitted(evaluator: Evaluator, tasks: Sequence[AttackTask]) -> _Answer:
    """The rows of one attack, of any sizes, that is fitted first if it must be; and the attack."""
    attack = tasks[0].attack
    if isinstance(attack, FittedAttack) and not attack.ready:
        evaluator.tell(f"{attack.name}, which is fitted first")
        attack = fit(evaluator, attack)
        tasks = [replace(task, attack=attack.at(task.attack.perturbations.epsilon)) for task in tasks]
    if isinstance(attack, Fault):
        return [play_fault(evaluator, task, attack) for task in tasks], attack
    if not evaluator.suite.ranks(attack):
        return [play_beside(evaluator, task) for task in tasks], attack
    return evaluator.play(tasks), attack


def _next(waiting: deque[_Group]) -> _Group | None:
    """The group to play next, which others look for at the same time."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _serve(actor: Any, waiting: deque[_Group], done: deque[tuple[_Group, _Answer]]) -> None:
    """Let a worker play what is waiting. What it cannot play is left to this process, which can say why."""
    import ray

    while (group := _next(waiting)) is not None:
        try:
            done.append((group, ray.get(actor.play.remote(group.tasks))))
        except Exception as error:
            _LOGGER.info("a worker of the evaluation stopped: %s", error)
            waiting.append(group)
            return


@contextmanager
def _started(evaluator: Evaluator, workers: int | None, *, groups: int) -> Iterator[list[Any] | None]:
    """Ray actors, one less than workers; None where no number is given, and there are no cores for two.

    Ray is started where it is not running. The actors come up while this process plays.
    """
    import ray

    from marl_aajr.training.cluster import ray_for
    from marl_aajr.training.resources import Resources

    with ray_for(Resources()):
        free = ray.available_resources()
        room = min(groups, free.get("CPU", 0), free.get("memory", math.inf) // _BYTES)
        count = int(room) if workers is None else min(workers, groups)
        if count < 2:
            yield None
            return
        make = ray.remote(num_cpus=1)(_Worker).remote
        alike = ("victim", "spec", "suite", "agents", "units", "seed", "opponents", "home")
        shared = {name: getattr(evaluator, name) for name in alike}
        actors = [make(**shared, num_envs=evaluator.env.num_envs) for _ in range(count - 1)]
        try:
            evaluator.time.begin(workers=count)
            yield actors
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

    def play(self, tasks: Sequence[AttackTask]) -> _Answer:
        return play_fitted(self._evaluator, tasks)
