"""All rows of an evaluation, in the order in which they depend on each other.

    1. without attack
    2. where the worst k agents are to be found: each attack on subset after subset (selection episodes)
    3. each attack on its agents: the reported rows, and what the worst attack of each size is chosen by
    4. which agent is the weakest link: the worst attack of each size on one agent alone (selection episodes)

Within 2, 3 and 4 no row knows of another, so it does not matter which process plays them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.budget import candidates, rounds
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.outcomes import (
    Actions,
    AttackOutcome,
    AttackSpec,
    ReplacementOutcome,
    SubsetOutcome,
    WorstAttack,
)
from marl_aajr.evaluation.preflight import ObservationSampler
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.result import ActionsResult
from marl_aajr.evaluation.statistics import paired_difference
from marl_aajr.evaluation.workers import WorkerPool, worker_pool


@dataclass
class _Case:
    """One attack with one kind of actions, on its way to a row.

    Attributes:
        actions: greedy or sampled.
        attack: fitted where it must be.
        agents: the attacked agents, as far as they have been found.
        tried: the subsets of agents that were tried for it.
        chosen_on: its returns on the selection episodes; empty where there are none.
        outcome: the row.
    """

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
) -> tuple[ActionsResult, ...]:
    """Every row of every kind of actions, the worst attack of each size, and the subsets that were tried.

    Args:
        evaluator: plays in this process: the clean rows always, whose decisions are sampled, and those of
            replaced agents, which are as cheap.
        attacks: fitted where they must be.
        replacements: agents that do not play as the victim does.
        observed: samples the decisions of clean episodes.
        workers: number of Ray workers that share the attacked rows; 1: none; None: as many as are worth it.
    """
    suite = evaluator.suite
    clean = {actions: evaluator.clean(actions, on_step=observed) for actions in suite.actions}
    start = () if suite.budget.worst else tuple(evaluator.agents)
    cases = [_Case(actions, attack, start) for actions in suite.actions for attack in attacks]
    with worker_pool(evaluator, workers=workers and min(workers, len(cases))) as pool:
        _find_agents(pool, evaluator, cases)
        _play(pool, evaluator, cases)
        worst = {actions: _worst([case for case in cases if case.actions == actions]) for actions in clean}
        alone = _each_alone(pool, evaluator, worst)
    return tuple(
        ActionsResult(
            actions=actions,
            clean=clean[actions],
            attacks=tuple(c.outcome for c in cases if c.actions == actions and c.outcome is not None),
            worst=tuple(row for row, _ in worst[actions]),
            adversarial_agents=_replaced(evaluator, replacements, actions),
            subsets=(*(each for c in cases if c.actions == actions for each in c.tried), *alone[actions]),
            clean_selection=evaluator.unattacked.get(actions, ()),
        )
        for actions in suite.actions
    )


def _find_agents(pool: WorkerPool, evaluator: Evaluator, cases: Sequence[_Case]) -> None:
    """Settle the agents of each attack: the worst k for it, where they are to be found."""
    k = evaluator.suite.budget.worst
    if k is None:
        return
    for _ in range(rounds(evaluator.agents, k)):
        tried = [(case, agents) for case in cases for agents in candidates(evaluator.agents, k, case.agents)]
        returns = pool.play([evaluator.task(c.actions, c.attack, a, selection=True) for c, a in tried])
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
            evaluator.task(case.actions, case.attack, case.agents, selection=selection)
            for part, selection in ((cases, False), (unchosen, True))
            for case in part
        ]
    )
    for case, outcome in zip(cases, results[: len(cases)], strict=True):
        case.outcome = outcome
    for case, returns in zip(unchosen, results[len(cases) :], strict=True):
        case.chosen_on = returns


def _each_alone(
    pool: WorkerPool, evaluator: Evaluator, worst: Mapping[Actions, Sequence[tuple[WorstAttack, Attack]]]
) -> dict[Actions, list[SubsetOutcome]]:
    """The worst attack of each size on one agent alone, where that was asked for and is not known."""
    if not evaluator.suite.alone(evaluator.agents):
        return {actions: [] for actions in worst}
    singles = [(kind, attack, (a,)) for kind in worst for _, attack in worst[kind] for a in evaluator.agents]
    returns = pool.play([evaluator.task(*single, selection=True) for single in singles])
    return {
        kind: [_subset(a, attack, r) for (k, attack, a), r in zip(singles, returns, strict=True) if k == kind]
        for kind in worst
    }


def _subset(agents: tuple[str, ...], attack: Attack, returns: tuple[float, ...]) -> SubsetOutcome:
    return SubsetOutcome(agents=agents, attack=AttackSpec.of(attack), returns=returns)


def _worst(cases: Sequence[_Case]) -> list[tuple[WorstAttack, Attack]]:
    """By size: the row with the lowest mean return on the selection episodes against the next one."""
    by_size: dict[float, list[_Case]] = {}
    for case in cases:
        if case.chosen_on:
            by_size.setdefault(case.attack.perturbations.epsilon, []).append(case)
    found = []
    for epsilon in sorted(by_size):
        ordered = sorted(by_size[epsilon], key=lambda case: float(np.mean(case.chosen_on)))
        first, second = ordered[0].outcome, ordered[1].outcome if len(ordered) > 1 else None
        assert first is not None
        worst = WorstAttack(
            attack=first.attack,
            agents=first.agents,
            mean=first.mean,
            low=first.low,
            high=first.high,
            selection_return=float(np.mean(ordered[0].chosen_on)),
            runner_up=None if second is None else second.attack,
            lead=None if second is None else paired_difference(first.returns, second.returns),
        )
        found.append((worst, ordered[0].attack))
    return found


def _replaced(
    evaluator: Evaluator, replacements: Sequence[Replacement], actions: Actions
) -> tuple[ReplacementOutcome, ...]:
    """All replacements; where there is a choice, the worst agents are marked, by the selection episodes."""
    teams = evaluator.env.teams
    rows = [evaluator.replaced(replacement, actions) for replacement in replacements]
    tried: dict[_Rivals, list[float]] = {}
    for row in rows:
        if row.selection_return is not None:
            tried.setdefault(_rivals(row, teams), []).append(row.selection_return)
    lowest = {key: min(means) for key, means in tried.items() if len(means) > 1}
    return tuple(
        row.model_copy(update={"worst": row.selection_return == lowest.get(_rivals(row, teams), math.nan)})
        for row in rows
    )


_Rivals = tuple[str, tuple[str, ...]]


def _rivals(row: ReplacementOutcome, teams: Mapping[str, str]) -> _Rivals:
    """What is compared: agents of one kind, as many, and of the same sides."""
    return row.kind, tuple(sorted(teams[agent] for agent in row.agents))
