"""All rows of an evaluation, in the order in which they depend on each other.

    1. without attack, against the victim's own side and every opponent
    2. where the worst k agents are to be found: each attack on subset after subset (selection episodes)
    3. each attack on its agents: the reported rows, and what the worst attack of each size is chosen by
    4. which agent is the weakest link: the worst attack of each size on one agent alone (selection episodes)

Agents and attacks are chosen for each opponent by itself. Within 2, 3 and 4 no row knows of another: a
`WorkerPool` shares them among processes, to the same numbers.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.core.checks import grouped
from marl_aajr.core.seeds import Purpose
from marl_aajr.evaluation.admission import fitted
from marl_aajr.evaluation.budget import candidates, rounds
from marl_aajr.evaluation.evaluator import AttackTask, Evaluator
from marl_aajr.evaluation.outcomes import OWN, Actions, AttackOutcome, AttackSpec
from marl_aajr.evaluation.preflight import ObservationSampler
from marl_aajr.evaluation.replacements import Replacement, mark_worst
from marl_aajr.evaluation.result import ActionsResult, OpponentResult, Rows, SubsetOutcome
from marl_aajr.evaluation.worst_attack import WorstAttack, worst_of_each_size
from marl_aajr.rollout.environments import make_batch
from marl_aajr.victims.stepper import DecisionBatch

_WORTH = 20.0
"""Seconds of work from which on workers are worth their start, which takes about five."""

_BYTES = 1 << 30
"""What a worker may need of memory."""

_Key = tuple[str, Actions]
"""A side, `OWN` or an opponent's name, and a kind of actions."""

_LOGGER = logging.getLogger(__name__)


@dataclass
class _Case:
    """One attack with one kind of actions against one side, on its way to a row on the agents found so far.

    `tried` are the subsets that were tried for it, `chosen_on` its returns on the selection episodes.
    """

    side: str
    actions: Actions
    attack: Attack
    agents: tuple[str, ...]
    tried: list[SubsetOutcome] = field(default_factory=list)
    chosen_on: tuple[float, ...] = ()
    outcome: AttackOutcome | None = None


def play_rows(
    evaluator: Evaluator,
    attacks: Sequence[Attack],
    *,
    replacements: Sequence[Replacement],
    observed: ObservationSampler,
    workers: int | None,
    training_attack: Attack | None = None,
) -> tuple[ActionsResult, ...]:
    """Every row of every kind of actions, the worst attack of each size, and the subsets that were tried.

    The evaluator plays the clean rows in this process, whose decisions are sampled, and those of replaced
    agents, which are as cheap; `workers` share the attacked ones. Attacks that must be fitted are, once it is
    known how long the rest takes.
    """
    suite = evaluator.suite

    def watch(batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        evaluator.time(batches, episode)
        observed(batches, episode)

    clean = {(OWN, actions): evaluator.clean(OWN, actions, on_step=watch) for actions in suite.actions}
    _foresee(evaluator)
    met = [(side, actions) for side in evaluator.opponents for actions in suite.actions]
    clean |= {key: evaluator.clean(*key) for key in met}
    attacks = fitted(evaluator, attacks)
    evaluator.time.begin()
    start = () if suite.budget.worst else tuple(evaluator.agents)
    cases = [_Case(*key, attack, start) for key in clean for attack in attacks]
    with WorkerPool(evaluator, workers=workers and min(workers, len(cases))) as pool:
        _find_agents(pool, evaluator, cases)
        _play(pool, evaluator, cases)
        known = _training_attack(pool, evaluator, training_attack)
        by_key = {key: [case for case in cases if (case.side, case.actions) == key] for key in clean}
        worst = {key: _worst(own) for key, own in by_key.items()}
        alone = _each_alone(pool, evaluator, worst)
    rows = {
        key: Rows(
            clean=clean[key],
            attacks=tuple(case.outcome for case in own if case.outcome is not None),
            worst=tuple(row for row, _ in worst[key]),
            subsets=(*(each for case in own for each in case.tried), *alone.get(key, ())),
            clean_selection=evaluator.unattacked.get(key, ()),
        )
        for key, own in by_key.items()
    }
    return tuple(
        ActionsResult(
            **dict(rows[OWN, actions]),
            actions=actions,
            training_attack=known.get(actions),
            adversarial_agents=mark_worst(
                [evaluator.replaced(replacement, actions) for replacement in replacements],
                evaluator.env.teams,
            ),
            opponents=tuple(
                OpponentResult(**dict(rows[name, actions]), opponent=name, kind=who.kind, agents=who.agents)
                for name, who in evaluator.opponents.items()
            ),
        )
        for actions in suite.actions
    )


def _foresee(evaluator: Evaluator) -> None:
    """Estimate how long all rows will take, once the clean ones have been played."""
    everywhere = torch.ones(evaluator.env.num_envs).bool()
    kinds = len(evaluator.suite.actions)
    evaluator.time.learn(
        evaluator.rows * kinds,
        played=kinds * evaluator.suite.episodes,
        call=lambda attack, decisions: evaluator.attack_run(
            attack, evaluator.agents, purpose=Purpose.PROBE
        ).perturb(decisions, everywhere),
    )


def _find_agents(pool: WorkerPool, evaluator: Evaluator, cases: Sequence[_Case]) -> None:
    """Settle the agents of each attack: the worst k for it, where they are to be found."""
    k = evaluator.suite.budget.worst
    if k is None:
        return
    for _ in range(rounds(evaluator.agents, k)):
        tried = [(case, agents) for case in cases for agents in candidates(evaluator.agents, k, case.agents)]
        tasks = [evaluator.task(c.side, c.actions, c.attack, a, selection=True) for c, a in tried]
        returns = pool.play(tasks)
        for case in cases:
            new = [_subset(a, case.attack, r) for (c, a), r in zip(tried, returns, strict=True) if c is case]
            best = min(new, key=lambda subset: subset.mean)
            case.tried += new
            case.agents, case.chosen_on = best.agents, best.returns


def _play(pool: WorkerPool, evaluator: Evaluator, cases: Sequence[_Case]) -> None:
    """The reported rows, and the selection episodes where they have not been played."""
    unchosen = [case for case in cases if evaluator.suite.selection_episodes and not case.chosen_on]
    results = pool.play(
        [
            evaluator.task(case.side, case.actions, case.attack, case.agents, selection=selection)
            for part, selection in ((cases, False), (unchosen, True))
            for case in part
        ]
    )
    for case, outcome in zip(cases, results[: len(cases)], strict=True):
        case.outcome = outcome
    for case, returns in zip(unchosen, results[len(cases) :], strict=True):
        case.chosen_on = returns


def _training_attack(
    pool: WorkerPool, evaluator: Evaluator, attack: Attack | None
) -> dict[Actions, AttackOutcome]:
    if attack is None:
        return {}
    kinds, agents = evaluator.suite.actions, tuple(evaluator.agents)
    tasks = [evaluator.task(OWN, actions, attack, agents, selection=False) for actions in kinds]
    return dict(zip(kinds, pool.play(tasks), strict=True))


def _each_alone(
    pool: WorkerPool, evaluator: Evaluator, worst: Mapping[_Key, Sequence[tuple[WorstAttack, Attack]]]
) -> dict[_Key, list[SubsetOutcome]]:
    """The worst attack of each size on one agent alone, where that was asked for and is not known."""
    if not evaluator.suite.alone(evaluator.agents):
        return {}
    singles = [(key, attack, (a,)) for key in worst for _, attack in worst[key] for a in evaluator.agents]
    returns = pool.play([evaluator.task(*key, attack, a, selection=True) for key, attack, a in singles])
    tried = zip(singles, returns, strict=True)
    return grouped((key, _subset(agents, attack, left)) for (key, attack, agents), left in tried)


def _subset(agents: tuple[str, ...], attack: Attack, returns: tuple[float, ...]) -> SubsetOutcome:
    return SubsetOutcome(agents=agents, attack=AttackSpec.of(attack), returns=returns)


def _worst(cases: Sequence[_Case]) -> list[tuple[WorstAttack, Attack]]:
    """By size: the worst attack as it is reported, and as it can be played."""
    chosen = [(c.attack, c.outcome, float(np.mean(c.chosen_on))) for c in cases if c.outcome and c.chosen_on]
    by_size = worst_of_each_size(
        chosen, size=lambda case: case[0].perturbations.epsilon, left=lambda case: case[2]
    )
    return [(WorstAttack.of([case[1:] for case in found]), found[0][0]) for found in by_size.values()]


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
