"""All rows of an evaluation, in the order in which they depend on each other.

    1. without attack
    2. where the worst k agents are to be found: each attack on subset after subset (selection episodes)
    3. each attack on its agents: the reported rows, and what the worst attack of each size is chosen by
    4. which agent is the weakest link: the worst attack of each size on one agent alone (selection episodes)

Within 2, 3 and 4 no row knows of another, so it does not matter who plays them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.budget import candidates, rounds
from marl_aajr.evaluation.crew import Crew, Job, crew
from marl_aajr.evaluation.outcomes import (
    Actions,
    AttackOutcome,
    AttackSpec,
    ReplacementOutcome,
    SubsetOutcome,
    WorstAttack,
)
from marl_aajr.evaluation.player import Player
from marl_aajr.evaluation.probe import ObservationSampler
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.result import ActionsResult
from marl_aajr.evaluation.statistics import paired_difference


@dataclass
class _Case:
    """One attack with one kind of actions, on its way to a row.

    Attributes:
        kind: of actions.
        attack: fitted where it must be.
        agents: whom it lies to, as far as they have been found.
        tried: the subsets of agents that were tried for it.
        chosen_on: its returns on the selection episodes; empty where there are none.
        outcome: the row.
    """

    kind: Actions
    attack: Attack
    agents: tuple[str, ...]
    tried: list[SubsetOutcome] = field(default_factory=list)
    chosen_on: tuple[float, ...] = ()
    outcome: AttackOutcome | None = None


def play_rows(
    player: Player,
    attacks: Sequence[Attack],
    suite: Suite,
    *,
    replacements: Sequence[Replacement],
    observed: ObservationSampler,
    workers: int | None,
) -> tuple[ActionsResult, ...]:
    """Every row of every kind of actions, the worst attack of each size, and the subsets that were tried.

    Args:
        player: plays here; the clean rows always, whose decisions are sampled, and those of replaced agents,
            which are as cheap.
        attacks: fitted where they must be.
        suite: episodes, kinds of actions, and budget.
        replacements: agents that do not play as the victim does.
        observed: samples the decisions of clean episodes.
        workers: how many Ray workers share the attacked rows; 1: none; None: as many as are worth it.
    """
    clean = {
        kind: player.clean(episodes=suite.episodes, sampled=kind == "sampled", on_step=observed)
        for kind in suite.actions
    }
    start = () if suite.budget.worst else tuple(player.agents)
    cases = [_Case(kind, attack, start) for kind in suite.actions for attack in attacks]
    with crew(player, workers=workers and min(workers, len(cases))) as hands:
        _find_agents(hands, player, suite, cases)
        _play(hands, player, suite, cases)
        worst = {kind: _worst([case for case in cases if case.kind == kind]) for kind in suite.actions}
        links = _links(hands, player, suite, worst)
    return tuple(
        ActionsResult(
            actions=kind,
            clean=clean[kind],
            attacks=tuple(case.outcome for case in cases if case.kind == kind and case.outcome is not None),
            worst=tuple(row for row, _ in worst[kind]),
            adversarial_agents=_replaced(player, replacements, suite, sampled=kind == "sampled"),
            subsets=(*(tried for case in cases if case.kind == kind for tried in case.tried), *links[kind]),
            clean_selection=player.unattacked.get(kind, ()),
        )
        for kind in suite.actions
    )


def _find_agents(hands: Crew, player: Player, suite: Suite, cases: Sequence[_Case]) -> None:
    """Settle whom each attack lies to: the worst k for it, where they are to be found."""
    k = suite.budget.worst
    if k is None:
        return
    for _ in range(rounds(player.agents, k)):
        tried = [(case, agents) for case in cases for agents in candidates(player.agents, k, case.agents)]
        returns = hands.play([_job(player, suite, c.kind, c.attack, a, selection=True) for c, a in tried])
        for case in cases:
            new = [_subset(a, case.attack, r) for (c, a), r in zip(tried, returns, strict=True) if c is case]
            best = min(new, key=lambda subset: subset.mean)
            case.tried += new
            case.agents, case.chosen_on = best.agents, best.returns


def _play(hands: Crew, player: Player, suite: Suite, cases: Sequence[_Case]) -> None:
    """The reported rows, and the selection episodes where they have not been played."""
    unchosen = [case for case in cases if suite.selection_episodes and not case.chosen_on]
    results = hands.play(
        [
            _job(player, suite, case.kind, case.attack, case.agents, selection=selection)
            for part, selection in ((cases, False), (unchosen, True))
            for case in part
        ]
    )
    for case, outcome in zip(cases, results[: len(cases)], strict=True):
        case.outcome = outcome
    for case, returns in zip(unchosen, results[len(cases) :], strict=True):
        case.chosen_on = returns


def _links(
    hands: Crew, player: Player, suite: Suite, worst: dict[Actions, list[tuple[WorstAttack, Attack]]]
) -> dict[Actions, list[SubsetOutcome]]:
    """The worst attack of each size on one agent alone, where that was asked for and is not known."""
    if not suite.alone(player.agents):
        return {kind: [] for kind in worst}
    singles = [(kind, attack, (a,)) for kind in worst for _, attack in worst[kind] for a in player.agents]
    returns = hands.play([_job(player, suite, *single, selection=True) for single in singles])
    return {
        kind: [_subset(a, attack, r) for (k, attack, a), r in zip(singles, returns, strict=True) if k == kind]
        for kind in worst
    }


def _subset(agents: tuple[str, ...], attack: Attack, returns: tuple[float, ...]) -> SubsetOutcome:
    return SubsetOutcome(agents=agents, attack=AttackSpec.of(attack), returns=returns)


def _job(
    player: Player, suite: Suite, kind: Actions, attack: Attack, agents: tuple[str, ...], *, selection: bool
) -> Job:
    return Job(
        attack,
        agents,
        player.schedule(kind, agents, suite.budget),
        sampled=kind == "sampled",
        selection=selection,
        episodes=suite.selection_episodes if selection else suite.episodes,
    )


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
    player: Player, replacements: Sequence[Replacement], suite: Suite, *, sampled: bool
) -> tuple[ReplacementOutcome, ...]:
    """All replacements; where there is a choice, the worst agents are marked, by the selection episodes."""
    rows = [
        player.replaced(
            replacement,
            episodes=suite.episodes,
            selection_episodes=suite.selection_episodes,
            sampled=sampled,
        )
        for replacement in replacements
    ]
    tried: dict[_Rivals, list[float]] = {}
    for row in rows:
        if row.selection_return is not None:
            tried.setdefault(_rivals(row, player.env.teams), []).append(row.selection_return)
    lowest = {key: min(means) for key, means in tried.items() if len(means) > 1}
    return tuple(
        row.model_copy(
            update={"worst": row.selection_return == lowest.get(_rivals(row, player.env.teams), math.nan)}
        )
        for row in rows
    )


_Rivals = tuple[str, tuple[str, ...]]


def _rivals(row: ReplacementOutcome, teams: Mapping[str, str]) -> _Rivals:
    """What is compared: agents of one kind, as many, and of the same sides."""
    return row.kind, tuple(sorted(teams[agent] for agent in row.agents))
