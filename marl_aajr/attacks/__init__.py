"""Observation attacks: who lies to the policy's sensors, and how well."""

from __future__ import annotations

import dataclasses
from typing import Any

from marl_aajr.adversaries.attack import PAAD, SARL, LearnedAttack
from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.attacks.auto_pgd import StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import Access, Attack, Attacked, BudgetError, greedy_action_changed
from marl_aajr.attacks.critic import CriticPGD
from marl_aajr.attacks.gradient import FGSM, PGD, MarginPGD
from marl_aajr.attacks.noise import GaussianNoise, UniformNoise, WorstNoise
from marl_aajr.attacks.square import SquareAttack
from marl_aajr.attacks.targeted import TargetedPGD
from marl_aajr.attacks.transfer import Transfer
from marl_aajr.core.checks import one_of
from marl_aajr.core.threat import PerturbationSet

__all__ = [
    "ATTACKS",
    "FGSM",
    "PAAD",
    "PGD",
    "SARL",
    "Access",
    "Attack",
    "Attacked",
    "BudgetError",
    "CriticPGD",
    "GaussianNoise",
    "LearnedAttack",
    "MarginPGD",
    "RobustSarsa",
    "SquareAttack",
    "StrongMarginPGD",
    "StrongPGD",
    "TargetedPGD",
    "Transfer",
    "UniformNoise",
    "WorstNoise",
    "attack_class",
    "greedy_action_changed",
    "make_attack",
]

ATTACKS: dict[str, type[Attack]] = {
    cls.name: cls
    for cls in (
        UniformNoise,
        GaussianNoise,
        WorstNoise,
        FGSM,
        PGD,
        MarginPGD,
        TargetedPGD,
        StrongPGD,
        StrongMarginPGD,
        CriticPGD,
        RobustSarsa,
        SquareAttack,
        Transfer,
        SARL,
        PAAD,
    )
}
"""The attacks by name, the weakest controls first."""


def attack_class(name: str) -> type[Attack]:
    """The attack of a name.

    Raises:
        ValueError: unknown name; the known ones are listed, and the nearest one is proposed.
    """
    one_of("an attack", name, ATTACKS)
    return ATTACKS[name]


def make_attack(name: str, *, epsilon: float, **settings: Any) -> Attack:
    """An attack by name, radius and settings.

    Args:
        name: a key of `ATTACKS`.
        epsilon: radius of the perturbation set, in the units that the policy network sees.
        settings: of the attack (`steps`, `objective`, ...) or of its
            `PerturbationSet` (`norm`, `mask`, ...).

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.

    Example:
        >>> make_attack("pgd", epsilon=0.1, norm="l2", restarts=5)
    """
    cls = attack_class(name)
    own = {f.name for f in dataclasses.fields(cls) if not f.name.startswith("_")} - {"perturbations"}
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
