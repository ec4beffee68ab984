"""Who plays the attacked rows: this process, or Ray workers that share them, to the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.player import Player
from marl_aajr.evaluation.timing import Pace
from marl_aajr.rollout.batches import make_batch


@dataclass(frozen=True)
class Job:
    """One attack to play on the reported episodes, or on those that choices rest on.

    Attributes:
        attack: on whom the victim is judged.
        agents: whom it lies to.
        pace: in how many steps, and which; None: in every step.
        sampled: whether actions are sampled.
        selection: whether it is played on the selection episodes.
        episodes: how many.
    """

    attack: Attack
    agents: tuple[str, ...]
    pace: Pace | None
    sampled: bool
    selection: bool
    episodes: int

    def play(self, player: Player) -> AttackOutcome | tuple[float, ...]:
        """The outcome, or the returns that a choice rests on."""
        play = player.selected_on if self.selection else player.attacked
        return play(
            self.attack, agents=self.agents, pace=self.pace, episodes=self.episodes, sampled=self.sampled
        )


class Crew:
    """Plays jobs, in this process or by an actor pool."""

    def __init__(self, player: Player, pool: Any = None) -> None:
        self._player, self._pool = player, pool

    def play(self, jobs: Sequence[Job]) -> list[Any]:
        """The jobs' results in their order, whoever finishes first."""
        if self._pool is None or len(jobs) < 2:
            return [job.play(self._player) for job in jobs]
        results = []
        played = self._pool.map(lambda actor, job: actor.play.remote(job), jobs)
        for job, result in zip(jobs, played, strict=True):
            results.append(result)
            self._player.done += job.episodes
            self._player.tell(job.attack.name, 0)
        return results


@contextmanager
def crew(player: Player, *, workers: int) -> Iterator[Crew]:
    """A crew of so many Ray workers; 1: of this process alone. Ray is started where it is not running."""
    if workers < 2:
        yield Crew(player)
        return
    import ray
    from ray.util import ActorPool

    from marl_aajr.training.cluster import ray_for
    from marl_aajr.training.config import Resources

    with ray_for(Resources()):
        make = ray.remote(num_cpus=1)(_Worker).remote
        table = {
            name: getattr(player, name) for name in ("victim", "spec", "agents", "units", "seed", "scales")
        }
        yield Crew(player, ActorPool([make(**table, num_envs=player.env.num_envs) for _ in range(workers)]))


class _Worker:
    """A player in a process of its own."""

    def __init__(self, **table: Any) -> None:
        torch.set_num_threads(1)
        num_envs = table.pop("num_envs")
        self._player = Player(**table, env=make_batch(table["spec"], num_envs), on_progress=None)

    def play(self, job: Job) -> AttackOutcome | tuple[float, ...]:
        return job.play(self._player)
