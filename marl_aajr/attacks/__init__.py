"""Observation attacks: what the policy is shown instead of what there is, within a perturbation set.

An attack is a value that proposes perturbations; `base` says what every attack guarantees, `registry` knows
them by name. Attacks that must play or train first (`robust-sarsa`, `sa-rl`, `pa-ad`) stand in
`marl_aajr.adversaries`.
"""

from marl_aajr.attacks.auto_pgd import StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import Access, Attack, Attacked, BudgetError, greedy_action_changed
from marl_aajr.attacks.gradient import FGSM, PGD, CriticPGD, MarginPGD, TargetedPGD
from marl_aajr.attacks.gradient_free import GaussianNoise, SquareAttack, UniformNoise, WorstNoise
from marl_aajr.attacks.registry import ATTACKS, attack_class, make_attack
from marl_aajr.attacks.transfer import Transfer

__all__ = [
    "ATTACKS",
    "FGSM",
    "PGD",
    "Access",
    "Attack",
    "Attacked",
    "BudgetError",
    "CriticPGD",
    "GaussianNoise",
    "MarginPGD",
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
