"""Whether a victim can be evaluated as planned: checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from marl_aajr.attacks import Attack
from marl_aajr.core.policy import differentiable
from marl_aajr.evaluation.attack_schedule import has_preferences
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.outcomes import AttackSpec
from marl_aajr.evaluation.plan import Plan
from marl_aajr.evaluation.result import Skipped
from marl_aajr.evaluation.suites import Units
from marl_aajr.victims import Victim
from marl_aajr.victims.store import check_portable


def named_agents(agents: Collection[str] | None, budget: Budget) -> Collection[str] | None:
    """The agents under attack where somebody named them, in the budget or beside it.

    Raises:
        ValueError: both did.
    """
    if agents is not None and budget.named is not None:
        raise ValueError(
            f"expected agents named once, got {', '.join(agents)} and agents={'+'.join(budget.named)} in the "
            "budget; drop one"
        )
    return budget.named if agents is None else agents


def check_budget(budget: Budget, victim: Victim, agents: Sequence[str]) -> None:
    """Raise `ValueError` unless these agents of the victim can be attacked within the budget."""
    budget.check(agents)
    for agent in agents:
        distribution = victim.distributions[victim.module_of[agent]]
        if budget.timing == "strategic" and not has_preferences(distribution):
            raise ValueError(
                f"expected discrete actions for timing=strategic, which compares a policy's best action with "
                f"its worst, got {victim.action_spaces[agent]} for {agent!r}; use timing=random"
            )


def settle_units(units: Units | None, victim: Victim, agents: Collection[str]) -> Units:
    """The units of ε.

    Raises:
        ValueError: they were not said, and an observation filter makes a difference.
    """
    if units is not None:
        return units
    filtered = [agent for agent in agents if victim.filters.get(agent) is not None]
    if filtered:
        raise ValueError(
            "expected units 'raw' (of the environment, the same for all victims) or 'network' (after the "
            f"observation filter) for epsilon, got none, and {filtered[0]!r} has a filter; say which"
        )
    return "raw"


def check_actions(plan: Plan, victim: Victim) -> None:
    """Raise `ValueError` where actions are to be sampled that the victim cannot sample."""
    if victim.greedy_only and "sampled" in plan.actions:
        raise ValueError(
            "expected greedy actions for a victim without a distribution to sample from, got "
            f"{', '.join(plan.actions)}; say --actions greedy"
        )


def admitted(
    plan: Plan, victim: Victim, agents: Sequence[str]
) -> tuple[tuple[Attack, ...], tuple[Skipped, ...]]:
    """The attacks that can be played, and those of a suite that cannot; see `check_attack`.

    Raises:
        ValueError: an attack cannot be played that was asked for by itself, beside a suite or without one.
    """
    kept: list[Attack] = []
    skipped: dict[AttackSpec, Skipped] = {}
    for attack in plan.attacks:
        try:
            check_attack(attack, victim, agents)
        except ValueError as error:
            if attack in plan.asked:
                raise
            skipped[AttackSpec.of(attack).at(1.0)] = Skipped(attack.name, str(error))
        else:
            kept.append(attack)
    return tuple(kept), tuple(skipped.values())


def check_attack(attack: Attack, victim: Victim, agents: Sequence[str]) -> None:
    """Raise `ValueError` where the attack is not defined for the policies of these agents."""
    if attack.access == "learned" and not attack.ready:
        _check_trainable(attack, victim)
    for agent in agents:
        space = victim.observation_spaces[agent]
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"expected float observations to attack, got {space} for {agent!r}; convert them in the "
                "environment (for example obs.astype(np.float32)) and train again"
            )
        attack.objective_for(victim.distributions[victim.module_of[agent]])
        nothing = torch.zeros(1, int(np.prod(space.shape or ())))
        attack.perturbations.project(nothing, nothing)
        if attack.ready:
            attack.against(victim, agent)
        first = victim.memory().recall({agent: torch.zeros(1, dtype=torch.int64)})
        follows = attack.access in ("gradients", "learned")
        if follows and not differentiable(victim.policy(agent, state=first), nothing):
            raise ValueError(
                f"expected a policy with gradients for the attack {attack.name!r}, got one for {agent!r} "
                "that torch cannot differentiate by its inputs; use square, noise-worst or transfer"
            )


def _check_trainable(attack: Attack, victim: Victim) -> None:
    """Raise `ValueError` where no adversary can be trained: that happens against a saved copy, in a run."""
    if not victim.env_name:
        raise ValueError(
            f"expected a victim that names its environment for {attack.name!r}, which is trained in it, got "
            "one that does not; set its env_name"
        )
    try:
        check_portable(victim)
    except ValueError as error:
        raise ValueError(
            f"expected a victim that can be saved for {attack.name!r}, which trains against a copy: {error}"
        ) from None
