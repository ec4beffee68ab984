"""Observation attacks: who lies to the policy's sensors, and how well."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from typing import Any

from marl_aajr.attacks.base import Attack, Attacked, BudgetError, greedy_action_changed
from marl_aajr.attacks.gradient import FGSM, PGD, MarginPGD, StrongPGD
from marl_aajr.attacks.noise import UniformNoise
from marl_aajr.threat import PerturbationSet

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Attack",
    "Attacked",
    "BudgetError",
    "MarginPGD",
    "StrongPGD",
    "UniformNoise",
    "attack_class",
    "greedy_action_changed",
    "make_attack",
]

ATTACKS: dict[str, type[Attack]] = {cls.name: cls for cls in (UniformNoise, FGSM, PGD, MarginPGD, StrongPGD)}
"""The attacks by name."""


def attack_class(name: str) -> type[Attack]:
    """The attack of a name.

    Raises:
        ValueError: unknown name; the known ones are listed, close matches first.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    close = get_close_matches(name, ATTACKS, n=len(ATTACKS), cutoff=0.5)
    known = [*close, *(other for other in ATTACKS if other not in close)]
    raise ValueError(f"expected an attack out of {', '.join(known)}; got {name!r}")


def make_attack(name: str, *, epsilon: float, **settings: Any) -> Attack:
    """An attack by name, radius and settings.

    Args:
        name: a key of :data:`ATTACKS`.
        epsilon: radius of the perturbation set, in the units that the policy network sees.
        settings: of the attack (``steps``, ``objective``, ...) or of its
            :class:`~marl_aajr.threat.PerturbationSet` (``norm``, ``mask``, ...).

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.

    Example:
        >>> make_attack("pgd", epsilon=0.1, norm="l2", restarts=5)
    """
    cls = attack_class(name)
    own = {f.name for f in dataclasses.fields(cls)} - {"perturbations"}
    budget = {f.name for f in dataclasses.fields(PerturbationSet)} - {"epsilon"}
    if unknown := sorted(set(settings) - own - budget):
        raise ValueError(
            f"expected settings of {name!r} out of {', '.join(sorted(own | budget))}; "
            f"got {', '.join(unknown)}"
        )
    perturbations = PerturbationSet(
        epsilon=epsilon, **{key: value for key, value in settings.items() if key in budget}
    )
    chosen = {key: value for key, value in settings.items() if key in own}
    return cls(perturbations=perturbations, **chosen)
