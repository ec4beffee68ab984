"""What is evaluated against what: decided and checked before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from marl_aajr.attacks import Attack, attack_class, make_attack
from marl_aajr.checks import one_of
from marl_aajr.rollout.batched import BatchedEnv
from marl_aajr.victims import Victim

Request = tuple[str | Attack, float]
"""An attack (by name, or a value whose radius is replaced) and its epsilon."""


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


def choose_team(teams: Mapping[str, str], team: str | None) -> str:
    """The team under attack: the named one, or the largest (of equals, the first).

    Raises:
        ValueError: no such team.
    """
    sizes = Counter(teams.values())
    if team is None:
        return max(sizes, key=lambda name: sizes[name])
    one_of("a team", team, sizes)
    return team


def check_match(victim: Victim, env: BatchedEnv) -> None:
    """Raise ``ValueError`` unless the victim can play every agent of the environment."""
    for agent in env.possible_agents:
        if agent not in victim.module_of:
            raise ValueError(
                f"expected a victim that plays {', '.join(env.possible_agents)}, got one for "
                f"{', '.join(victim.agents)}; evaluate it on the environment that it was trained on"
            )
        for kind, has, needs in (
            ("observations", victim.observation_spaces[agent], env.observation_spaces[agent]),
            ("actions", victim.action_spaces[agent], env.action_spaces[agent]),
        ):
            if not _fits(has, needs):
                raise ValueError(
                    f"expected a victim for the {kind} {needs} of {agent!r}, got one for {has}; evaluate it "
                    "with the environment arguments that it was trained with"
                )


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


def _resolve(attack: str | Attack, epsilon: float) -> Attack:
    name = attack if isinstance(attack, str) else attack.name
    if isinstance(attack, str):
        attack_class(attack)
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not (number and isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"expected a finite epsilon > 0 for {name}, got {epsilon!r}")
    return make_attack(attack, epsilon=epsilon) if isinstance(attack, str) else attack.at(epsilon)


def _fits(has: spaces.Space[Any], needs: spaces.Space[Any]) -> bool:
    # Bounds of observations may differ with the arguments; nothing depends on them.
    if isinstance(has, spaces.Box) and isinstance(needs, spaces.Box):
        same_bounds = np.array_equal(has.low, needs.low) and np.array_equal(has.high, needs.high)
        return has.shape == needs.shape and has.dtype == needs.dtype and same_bounds
    return has == needs
