"""Observation attacks: what the policy is shown instead of what there is, within a set; sensor faults.

An attack is a value that proposes perturbations; `base` says what every attack guarantees. Attacks that must
play or train first (`robust-sarsa`, `sa-rl`, `pa-ad`) stand in `marl_aajr.adversaries`.

A package of your own makes its attacks known to `make_attack`, to suites and to the command line by its
metadata, by names of its own choice:

    [project.entry-points."marl_aajr.attacks"]
    shove = "my_package.attacks:Shove"

The class is imported when the name is first asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from marl_aajr.attacks.auto_pgd import StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import Access, Attack, Attacked, BudgetError, greedy_action_changed
from marl_aajr.attacks.faults import FAULTS, Fault
from marl_aajr.attacks.gradient import FGSM, PGD, CriticPGD, MarginPGD, TargetedPGD
from marl_aajr.attacks.gradient_free import GaussianNoise, SquareAttack, UniformNoise, WorstNoise
from marl_aajr.attacks.messages import RandomMessages, WorstMessages
from marl_aajr.attacks.substitution import (
    ExhaustiveWords,
    GradientWords,
    GreedyWords,
    RandomWords,
    WordAttack,
)
from marl_aajr.attacks.transfer import Transfer
from marl_aajr.core.checks import made, one_of
from marl_aajr.core.threat import PerturbationSet, Unlimited
from marl_aajr.core.word_budget import WordBudget

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Access",
    "Attack",
    "Attacked",
    "BudgetError",
    "CriticPGD",
    "ExhaustiveWords",
    "Fault",
    "GaussianNoise",
    "GradientWords",
    "GreedyWords",
    "MarginPGD",
    "RandomMessages",
    "RandomWords",
    "SquareAttack",
    "StrongMarginPGD",
    "StrongPGD",
    "TargetedPGD",
    "Transfer",
    "UniformNoise",
    "WordAttack",
    "WorstMessages",
    "WorstNoise",
    "attack_class",
    "greedy_action_changed",
    "make_attack",
]

ENTRY_POINTS = "marl_aajr.attacks"
"""The group of entry points."""

_HERE: tuple[type[Attack], ...] = (
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
    SquareAttack,
    Transfer,
    RandomMessages,
    WorstMessages,
    *FAULTS,
    RandomWords,
    GradientWords,
    GreedyWords,
    ExhaustiveWords,
)
"""The weakest controls first."""

_FITTED: Mapping[str, str] = {
    "robust-sarsa": "marl_aajr.adversaries.robust_sarsa:RobustSarsa",
    "sa-rl": "marl_aajr.adversaries.learned:SARL",
    "pa-ad": "marl_aajr.adversaries.learned:PAAD",
}
"""Attacks that must play first. What plays builds on this package, so they are named here, not imported."""


class Registry(Mapping[str, type[Attack]]):
    """The attacks by name. A class from an entry point is imported when it is asked for."""

    def __getitem__(self, name: str) -> type[Attack]:
        """The attack of a name.

        Raises:
            KeyError: unknown name.
            ValueError: an entry point without an attack of this name behind it.
        """
        found = self._known[name]
        if isinstance(found, type):
            return found
        try:
            cls = found.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"expected to import the attack {name!r} from {found.value}, got {type(error).__name__}: "
                f"{error}; repair or remove the package that lists it"
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Attack) and cls.name == name):
            raise ValueError(
                f"expected a subclass of Attack with the name {name!r} in {found.value}, got {cls!r}; give "
                "the entry point the name of its class"
            )
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @cached_property
    def _known(self) -> dict[str, type[Attack] | EntryPoint]:
        own: dict[str, type[Attack] | EntryPoint] = {cls.name: cls for cls in _HERE}
        own |= {name: EntryPoint(name, path, ENTRY_POINTS) for name, path in _FITTED.items()}
        points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
        if taken := [point for point in points if point.name in own]:
            raise ValueError(
                f"expected entry points of {ENTRY_POINTS} with names of their own, got {taken[0].name!r} of "
                f"{taken[0].value}, which is an attack of marl_aajr; rename it"
            )
        return own | {point.name: point for point in points}


ATTACKS = Registry()
"""The attacks by name."""


def attack_class(name: str) -> type[Attack]:
    """The attack of a name.

    Raises:
        ValueError: unknown name; the known ones are listed, and the nearest one is proposed.
    """
    one_of("an attack", name, ATTACKS)
    return ATTACKS[name]


def make_attack(name: str, *, epsilon: float | None = None, **settings: Any) -> Attack:
    """An attack by name, radius and settings.

    Args:
        name: a key of `ATTACKS`.
        epsilon: radius of the perturbation set, in the units that the policy network sees; None: of an attack
            that has none, such as `delay`.
        settings: of the attack (`steps`, `objective`, ...) or of its
            `PerturbationSet` (`norm`, `mask`, ...).

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.

    Example:
        >>> make_attack("pgd", epsilon=0.1, norm="l2", restarts=5)
    """
    cls = attack_class(name)
    own = {f.name for f in dataclasses.fields(cls) if not f.name.startswith("_")} - {"perturbations"}
    space = (WordBudget if "words" in cls.norms else PerturbationSet) if cls.sized else Unlimited
    budget = {f.name for f in dataclasses.fields(space)} - ({"epsilon"} if cls.sized else {"epsilon", "norm"})
    if unknown := sorted(set(settings) - own - budget):
        known = ", ".join(sorted(own | budget))
        raise ValueError(f"expected settings of {name!r} out of {known}; got {', '.join(unknown)}")
    if cls.sized == (epsilon is None):
        raise ValueError(
            f"expected {'an epsilon' if cls.sized else 'no epsilon'} for {name!r}, got {epsilon}"
            + ("" if cls.sized else f"; its size is its settings: {', '.join(sorted(own - {'objective'}))}")
        )
    limits, chosen = ({key: v for key, v in settings.items() if key in keys} for keys in (budget, own))
    size = {} if epsilon is None else {"epsilon": epsilon}
    return made(cls, {"perturbations": made(space, {**size, **limits}), **chosen})
