"""All rows of an evaluation: played here, or shared between Ray workers, to the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.player import Player
from marl_aajr.evaluation.probe import Probe
from marl_aajr.evaluation.protocol import Plan
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.results import AgentOutcome, AttackOutcome, Rows, Worst
from marl_aajr.evaluation.suites import Actions
from marl_aajr.rollout.batches import make_batch


@dataclass(frozen=True)
class Job:
    """One row to play.

    Attributes:
        attack: on whom the victim is judged.
        sampled: whether actions are sampled.
        selection: whether it is played on the selection episodes, to choose by, or on the reported ones.
        episodes: how many.
    """

    attack: Attack
    sampled: bool
    selection: bool
    episodes: int

    def play(self, player: Player) -> AttackOutcome | float:
        """The outcome, or the mean return that the choice rests on."""
        if self.selection:
            return player.selected_on(self.attack, episodes=self.episodes, sampled=self.sampled)
        return player.attacked(self.attack, episodes=self.episodes, sampled=self.sampled)


def play_rows(
    player: Player,
    attacks: Sequence[Attack],
    plan: Plan,
    *,
    replacements: Sequence[Replacement],
    probe: Probe,
    workers: int,
) -> tuple[Rows, ...]:
    """Every row of every kind of actions, and the worst attack of each size.

    Args:
        player: plays here; the clean rows always, which the probe watches, and those of replaced agents,
            which are as cheap.
        attacks: fitted where they must be.
        plan: episodes, and kinds of actions.
        replacements: agents that do not play as the victim does.
        probe: told what the policies are asked on clean episodes.
        workers: how many Ray workers share the attacked rows; 1: none.
    """
    clean = {
        kind: player.clean(episodes=plan.episodes, sampled=kind == "sampled", spy=probe)
        for kind in plan.actions
    }
    kinds = [(kind, selection) for kind in plan.actions for selection in _selections(plan)]
    jobs = [
        Job(
            attack,
            sampled=kind == "sampled",
            selection=selection,
            episodes=plan.selection_episodes if selection else plan.episodes,
        )
        for kind, selection in kinds
        for attack in attacks
    ]
    share = min(workers, len(jobs))
    played: list[Any] = [job.play(player) for job in jobs] if share < 2 else _spread(player, jobs, share)
    found: dict[tuple[Actions, bool], list[Any]] = {
        key: played[start : start + len(attacks)]
        for key, start in zip(kinds, range(0, len(jobs), max(len(attacks), 1)), strict=False)
    }
    return tuple(
        Rows(
            kind,
            clean[kind],
            tuple(found.get((kind, False), [])),
            _worst(found.get((kind, False), []), found.get((kind, True), [])),
            _replaced(player, replacements, plan, sampled=kind == "sampled"),
        )
        for kind in plan.actions
    )


def _selections(plan: Plan) -> tuple[bool, ...]:
    return (False, True) if plan.selection_episodes else (False,)


def _worst(outcomes: Sequence[AttackOutcome], tried: Sequence[float]) -> tuple[Worst, ...]:
    """By size: the outcome of the attack with the lowest mean return on the selection episodes."""
    lowest: dict[float, Worst] = {}
    for outcome, mean in zip(outcomes, tried, strict=False):
        epsilon = outcome.attack.perturbations.epsilon
        if epsilon not in lowest or mean < lowest[epsilon].selected_on:
            lowest[epsilon] = Worst(epsilon, outcome, mean)
    return tuple(lowest[epsilon] for epsilon in sorted(lowest))


def _replaced(
    player: Player, replacements: Sequence[Replacement], plan: Plan, *, sampled: bool
) -> tuple[AgentOutcome, ...]:
    """All replacements; of each kind, the worst agents are marked, by their selection episodes."""
    rows = [
        player.replaced(
            replacement,
            episodes=plan.episodes,
            selection_episodes=plan.selection_episodes,
            sampled=sampled,
        )
        for replacement in replacements
    ]
    lowest: dict[tuple[str, int], float] = {}
    for row in rows:
        if row.selected_on is not None:
            lowest[_rivals(row)] = min(row.selected_on, lowest.get(_rivals(row), row.selected_on))
    return tuple(replace(row, worst=bool(lowest) and row.selected_on == lowest[_rivals(row)]) for row in rows)


def _rivals(row: AgentOutcome) -> tuple[str, int]:
    """Kind, and how many agents: more of them are no fair comparison."""
    return row.replacement.kind, len(row.replacement.agents)


class _Worker:
    """A player in a process of its own."""

    def __init__(self, **table: Any) -> None:
        torch.set_num_threads(1)
        num_envs = table.pop("num_envs")
        self._player = Player(**table, env=make_batch(table["spec"], num_envs), on_progress=None)

    def play(self, job: Job) -> AttackOutcome | float:
        return job.play(self._player)


def _spread(player: Player, jobs: Sequence[Job], workers: int) -> list[Any]:
    """The jobs' results in their order, whoever finishes first."""
    import ray
    from ray.util import ActorPool

    from marl_aajr.training.cluster import ray_for
    from marl_aajr.training.config import Resources

    with ray_for(Resources()):
        make = ray.remote(num_cpus=1)(_Worker).remote
        table = {name: getattr(player, name) for name in ("victim", "spec", "agents", "units", "seed")}
        pool = ActorPool([make(**table, num_envs=player.env.num_envs) for _ in range(workers)])
        results = []
        for job, result in zip(jobs, pool.map(lambda actor, job: actor.play.remote(job), jobs), strict=True):
            results.append(result)
            player.done += job.episodes
            player.tell(job.attack.name, 0)
        return results
