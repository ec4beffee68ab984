"""What is evaluated against what: decided and checked before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import Attack, attack_class, make_attack
from marl_aajr.attacks.transfer import Transfer
from marl_aajr.checks import one_of
from marl_aajr.evaluation.suites import Actions, Suite, Units, load_suite
from marl_aajr.policy import Policy
from marl_aajr.victims import Victim

Request = tuple[str | Attack, float]
"""An attack (by name, or a value whose radius is replaced) and its epsilon."""


@dataclass(frozen=True)
class Skipped:
    """An attack of a suite that the victim does not admit.

    Attributes:
        attack: its name.
        reason: why not, in words.
    """

    attack: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be played.

    Attributes:
        suite: the suite's name; empty where there is none.
        attacks: by attack, then radius.
        episodes: reported, for each row.
        selection_episodes: others, on which the worst attack is chosen; 0: none is.
        actions: greedy, sampled or both.
        units: of ε; None: not said, which is no matter without an observation filter.
    """

    suite: str
    attacks: tuple[Attack, ...]
    episodes: int
    selection_episodes: int
    actions: tuple[Actions, ...]
    units: Units | None


def make_plan(
    suite: str | Path | Suite | None,
    attacks: Sequence[Request],
    *,
    epsilons: Sequence[float] | None,
    episodes: int | None,
    selection_episodes: int | None,
    actions: Sequence[Actions] | None,
    units: Units | None,
    surrogates: Mapping[str, Victim],
) -> Plan:
    """Settle what a suite leaves open, and what was asked for beside it.

    Raises:
        ValueError: numbers out of range, or unknown or repeated names.
    """
    chosen = None if suite is None else load_suite(suite)
    requests = list(attacks)
    if chosen is not None:
        sizes = chosen.epsilons if epsilons is None else epsilons
        _check_epsilons(chosen.name, sizes)
        requests = [(entry.at(epsilon), epsilon) for entry in chosen.attacks for epsilon in sizes] + requests
    elif epsilons is not None:
        raise ValueError("expected epsilons with a suite, got no suite; give each attack its own epsilon")
    episodes = episodes if episodes is not None else (100 if chosen is None else chosen.episodes)
    positive_integer("episodes", episodes)
    if selection_episodes is None:
        selection_episodes = 0 if chosen is None else chosen.selection_episodes
    if selection_episodes:
        positive_integer("selection_episodes", selection_episodes)
    actions = actions or (("greedy",) if chosen is None else chosen.actions)
    for kind in actions:
        one_of("actions", kind, ("greedy", "sampled"))
    units = units or (None if chosen is None else chosen.units)
    if units is not None:
        one_of("units", units, ("raw", "network"))
    return Plan(
        suite="" if chosen is None else chosen.name,
        attacks=_with_surrogates(resolve_attacks(requests), surrogates),
        episodes=episodes,
        selection_episodes=selection_episodes,
        actions=tuple(dict.fromkeys(actions)),
        units=units,
    )


def _check_epsilons(name: str, epsilons: Sequence[float]) -> None:
    for epsilon in epsilons:
        if not (isinstance(epsilon, int | float) and isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"expected a finite epsilon > 0 for the suite {name!r}, got {epsilon!r}")
    if len(set(epsilons)) < len(epsilons):
        raise ValueError(f"expected each epsilon once, got {list(epsilons)}")


def _with_surrogates(attacks: Sequence[Attack], surrogates: Mapping[str, Victim]) -> tuple[Attack, ...]:
    """Transfers without a surrogate of their own become one for each that is there."""
    found: list[Attack] = []
    for attack in attacks:
        if isinstance(attack, Transfer) and attack.surrogate is None and surrogates:
            found += [replace(attack, surrogate=v, source=name) for name, v in surrogates.items()]
        else:
            found.append(attack)
    return tuple(found)


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


def admitted(
    plan: Plan, victim: Victim, agents: Sequence[str]
) -> tuple[tuple[Attack, ...], tuple[Skipped, ...]]:
    """The attacks that can be played, and those of a suite that cannot; see :func:`check_attack`.

    Raises:
        ValueError: an attack outside a suite that cannot be played.
    """
    kept: list[Attack] = []
    skipped: dict[str, Skipped] = {}
    for attack in plan.attacks:
        try:
            check_attack(attack, victim, agents)
        except ValueError as error:
            if not plan.suite:
                raise
            skipped[attack.settings] = Skipped(attack.name, str(error))
        else:
            kept.append(attack)
    return tuple(kept), tuple(skipped.values())


def resolve_attacks(requests: Sequence[Request]) -> tuple[Attack, ...]:
    """The attacks that were asked for.

    Raises:
        ValueError: unknown name, an epsilon that is no finite number > 0, or the same one twice.
    """
    attacks = tuple(_resolve(attack, epsilon) for attack, epsilon in requests)
    for attack, times in Counter(attacks).items():
        if times > 1:
            raise ValueError(
                f"expected each attack and epsilon once, got {attack.name} at "
                f"{attack.perturbations.epsilon:g} {times} times; drop the repetition"
            )
    return attacks


def positive_integer(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer ≥ 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be an integer ≥ 1, got {value!r}")


def check_seed(seed: Any) -> None:
    """Raise ``ValueError`` unless ``seed`` is an integer ≥ 0."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"expected seed to be an integer ≥ 0, got {seed!r}")


def check_attack(attack: Attack, victim: Victim, agents: Sequence[str]) -> None:
    """Raise ``ValueError`` where the attack is not defined for the policies of these agents."""
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
        if attack.access == "gradients" and not differentiable(victim.policy(agent, state=first), nothing):
            raise ValueError(
                f"expected a policy with gradients for the attack {attack.name!r}, got one for {agent!r} "
                "that torch cannot differentiate by its inputs; use square, noise-worst or transfer"
            )


def differentiable(policy: Policy, obs: Tensor) -> bool:
    """Whether torch can follow the outputs to the inputs; the gradient may be zero all the same."""
    with torch.enable_grad():
        return policy(obs.detach().clone().requires_grad_(True)).requires_grad


def _resolve(attack: str | Attack, epsilon: float) -> Attack:
    name = attack if isinstance(attack, str) else attack.name
    if isinstance(attack, str):
        attack_class(attack)
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not (number and isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"expected a finite epsilon > 0 for {name}, got {epsilon!r}")
    return make_attack(attack, epsilon=epsilon) if isinstance(attack, str) else attack.at(epsilon)
