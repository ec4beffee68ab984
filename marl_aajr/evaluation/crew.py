"""Who plays the attacked rows: this process, or Ray workers that share them, to the same numbers."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.attack_schedule import AttackSchedule
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.player import Player
from marl_aajr.rollout.environments import make_batch

_WORTH = 20.0
"""Seconds of work from which on workers are worth their start, which takes about five."""

_BYTES = 1 << 30
"""What a worker may need of memory."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One attack to play on the reported episodes, or on those that choices rest on.

    Attributes:
        attack: on whom the victim is judged.
        agents: whom it lies to.
        schedule: the attacked steps; None: every step.
        sampled: whether actions are sampled.
        selection: whether it is played on the selection episodes.
        episodes: how many.
    """

    attack: Attack
    agents: tuple[str, ...]
    schedule: AttackSchedule | None
    sampled: bool
    selection: bool
    episodes: int

    def play(self, player: Player) -> AttackOutcome | tuple[float, ...]:
        """The outcome, or the returns that a choice rests on."""
        play = player.selected_on if self.selection else player.attacked
        return play(
            self.attack,
            agents=self.agents,
            schedule=self.schedule,
            episodes=self.episodes,
            sampled=self.sampled,
        )


class Crew:
    """Plays jobs, in this process or by Ray workers.

    Args:
        player: of this process.
        workers: 1: none; None: as many as there are cores, once what is left is worth their start.
        stack: what was hired is let go with it.
    """

    def __init__(self, player: Player, *, workers: int | None, stack: ExitStack) -> None:
        self._player, self._workers, self._stack = player, workers, stack
        self._pool: Any = None
        self._started, self._done = time.monotonic(), player.done

    def play(self, jobs: Sequence[Job]) -> list[Any]:
        """The jobs' results in their order, whoever finishes first."""
        results: list[Any] = []
        while len(results) < len(jobs):
            left = jobs[len(results) :]
            if self._workers_for(len(left)):
                return [*results, *self._shared(left)]
            results.append(left[0].play(self._player))
        return results

    def _shared(self, jobs: Sequence[Job]) -> Iterator[Any]:
        played = self._pool.map(lambda actor, job: actor.play.remote(job), jobs)
        for job, result in zip(jobs, played, strict=True):
            self._player.done += job.episodes
            self._player.tell(job.attack.name, 0)
            yield result

    def _workers_for(self, jobs: int) -> bool:
        """Whether there are workers for so many jobs, hired now if they are worth it."""
        if jobs < 2 or self._workers == 1:
            return False
        if self._pool is None and (self._workers is not None or self._seconds_left() >= _WORTH):
            self._hire(jobs)
        return self._pool is not None

    def _hire(self, jobs: int) -> None:
        try:
            self._pool = self._stack.enter_context(_hired(self._player, self._workers, jobs=jobs))
        except Exception as error:
            if self._workers is not None:
                raise
            _LOGGER.info("evaluating in this process alone: %s", error)
        if self._pool is None:
            self._workers = 1

    def _seconds_left(self) -> float:
        """At the speed until now, which is that of the cheaper attacks: they come first."""
        done, left = self._player.done - self._done, self._player.total - self._player.done
        return left * (time.monotonic() - self._started) / done if done else 0.0


@contextmanager
def crew(player: Player, *, workers: int | None) -> Iterator[Crew]:
    """A crew of so many Ray workers; 1: of this process alone; None: of what the work is worth."""
    with ExitStack() as stack:
        yield Crew(player, workers=workers, stack=stack)


@contextmanager
def _hired(player: Player, workers: int | None, *, jobs: int) -> Iterator[Any]:
    """A pool of workers, ready to play; None where nobody said how many, and there are no cores for two.

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
        count = _room(jobs) if workers is None else workers
        if count < 2:
            yield None
            return
        make = ray.remote(num_cpus=1)(_Worker).remote
        table = {
            name: getattr(player, name) for name in ("victim", "spec", "agents", "units", "seed", "scales")
        }
        actors = [make(**table, num_envs=player.env.num_envs) for _ in range(count)]
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


def _room(jobs: int) -> int:
    """How many workers Ray has cores and memory for now, of as many as there are jobs."""
    import ray

    free = ray.available_resources()
    return int(min(jobs, free.get("CPU", 0), free.get("memory", math.inf) // _BYTES))


class _Worker:
    """A player in a process of its own."""

    def __init__(self, **table: Any) -> None:
        torch.set_num_threads(1)
        num_envs = table.pop("num_envs")
        self._player = Player(**table, env=make_batch(table["spec"], num_envs), on_progress=None)

    def ready(self) -> None:
        """Answers once there is a table to play at."""

    def play(self, job: Job) -> AttackOutcome | tuple[float, ...]:
        return job.play(self._player)
