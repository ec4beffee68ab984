"""All rows of an evaluation, in the order in which they depend on each other.

    1. without attack, against the victim's own side and every opponent
    2. where the worst k agents are to be found: each attack on subset after subset (selection episodes)
    3. each attack on its agents: the reported rows, and what the worst attack of each size is chosen by
    4. which agent is the weakest link: the worst attack of each size on one agent alone (selection episodes)

Agents and attacks are chosen for each opponent by itself. Within 2, 3 and 4 no row knows of another: a
`WorkerPool` plays them side by side, and shares them among processes, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Fault
from marl_aajr.attacks.together import play_together
from marl_aajr.core.checks import grouped
from marl_aajr.core.seeds import Purpose
from marl_aajr.evaluation.admission import fitted
from marl_aajr.evaluation.budget import candidates, rounds
from marl_aajr.evaluation.disturbed_rows import DisturbedRow, play_disturbed
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.fault_limits import check_fits
from marl_aajr.evaluation.outcomes import OWN, Actions, AttackOutcome, AttackSpec, ReplacementOutcome
from marl_aajr.evaluation.preflight import ObservationSampler
from marl_aajr.evaluation.replacements import Replacement, mark_worst
from marl_aajr.evaluation.result import ActionsResult, OpponentResult, Rows, SubsetOutcome
from marl_aajr.evaluation.threat_rows import play_dynamics
from marl_aajr.evaluation.threats import ThreatOutcome
from marl_aajr.evaluation.workers import WorkerPool
from marl_aajr.evaluation.worst_attack import WorstAttack, worst_of_each_size
from marl_aajr.victims.stepper import DecisionBatch

_Key = tuple[str, Actions]
"""A side, `OWN` or an opponent's name, and a kind of actions."""


@dataclass
class _Case:
    """One attack with one kind of actions against one side, on its way to a row on the agents found so far.

    If it is `ranked`, the worst of its size is chosen from it; `tried` are the subsets that were tried for
    it, `chosen_on` its returns on the selection episodes.
    """

    side: str
    actions: Actions
    attack: Attack
    agents: tuple[str, ...]
    ranked: bool
    tried: list[SubsetOutcome] = field(default_factory=list)
    chosen_on: tuple[float, ...] = ()
    outcome: AttackOutcome | None = None
    threats: tuple[ThreatOutcome, ...] = ()


def play_rows(
    evaluator: Evaluator,
    attacks: Sequence[Attack],
    *,
    replacements: Sequence[Replacement],
    observed: ObservationSampler,
    workers: int | None,
    training_attack: Attack | None = None,
    disturbed: Sequence[DisturbedRow] = (),
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
    for fault in (attack for attack in attacks if isinstance(attack, Fault)):
        check_fits(fault, evaluator.longest)
    attacks = fitted(evaluator, attacks)
    evaluator.time.begin()
    start = () if suite.budget.worst else tuple(evaluator.agents)
    cases = [_Case(*key, attack, start, suite.ranks(attack)) for key in clean for attack in attacks]
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
            threats=(
                *(row for case in own for row in case.threats),
                *(_beside(evaluator, key[1], disturbed) if key[0] == OWN else ()),
            ),
            worst=tuple(row for row, _ in worst[key]),
            subsets=(*(each for case in own for each in case.tried), *alone.get(key, ())),
            clean_selection=evaluator.unattacked.get(key, ()),
            adversarial_agents=_replaced(evaluator, *key, replacements),
        )
        for key, own in by_key.items()
    }
    return tuple(_result(evaluator, actions, rows, known) for actions in suite.actions)


def _beside(
    evaluator: Evaluator, actions: Actions, disturbed: Sequence[DisturbedRow]
) -> Iterator[ThreatOutcome]:
    yield from play_disturbed(evaluator, disturbed, actions)
    yield from play_dynamics(evaluator, actions)


def _replaced(
    evaluator: Evaluator, side: str, actions: Actions, replacements: Sequence[Replacement]
) -> tuple[ReplacementOutcome, ...]:
    asked = replacements if side == OWN else evaluator.whole(replacements)
    found = [evaluator.replaced(replacement, actions, side=side) for replacement in asked]
    return mark_worst(found, evaluator.env.teams)


def _result(
    evaluator: Evaluator,
    actions: Actions,
    rows: Mapping[_Key, Rows],
    known: Mapping[Actions, AttackOutcome],
) -> ActionsResult:
    """All that was played with one kind of actions."""
    opponents = (
        OpponentResult(**dict(rows[name, actions]), opponent=name, kind=who.kind, agents=who.agents)
        for name, who in evaluator.opponents.items()
    )
    return ActionsResult(
        **dict(rows[OWN, actions]),
        actions=actions,
        training_attack=known.get(actions),
        opponents=tuple(opponents),
    )


def _foresee(evaluator: Evaluator) -> None:
    """Estimate how long all rows will take, once the clean ones have been played."""
    everywhere = torch.ones(evaluator.env.num_envs).bool()
    kinds = len(evaluator.suite.actions)

    def call(attack: Attack, decisions: Sequence[DecisionBatch]) -> int:
        runs = [
            evaluator.attack_run(attack, evaluator.agents, purpose=Purpose.PROBE)
            for _ in range(evaluator.games.side_by_side(attack))
        ]
        play_together([run.perturb(decisions, everywhere) for run in runs])
        return len(runs)

    evaluator.time.learn(
        evaluator.rows * kinds,
        played=kinds * evaluator.suite.episodes,
        call=call,
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
            new = [(a, r) for (c, a), r in zip(tried, returns, strict=True) if c is case]
            case.agents, case.chosen_on = min(new, key=lambda found: float(np.mean(found[1])))
            case.tried += [_subset(agents, case.attack, left) for agents, left in new if case.ranked]


def _play(pool: WorkerPool, evaluator: Evaluator, cases: Sequence[_Case]) -> None:
    """The reported rows, and the selection episodes where they have not been played."""
    choose = evaluator.suite.selection_episodes > 0
    unchosen = [case for case in cases if choose and case.ranked and not case.chosen_on]
    results = pool.play(
        [
            evaluator.task(case.side, case.actions, case.attack, case.agents, selection=selection)
            for part, selection in ((cases, False), (unchosen, True))
            for case in part
        ]
    )
    for case, outcome in zip(cases, results[: len(cases)], strict=True):
        if case.ranked:
            case.outcome = outcome
        else:
            case.threats = outcome
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
