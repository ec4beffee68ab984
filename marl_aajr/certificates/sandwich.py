"""Attacks on the decisions that are certified: what they change must not be what is proven to stay.

certified share  ≤  share that no perturbation changes  ≤  1 − share that attacks changed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Fault, greedy_action_changed, make_attack
from marl_aajr.certificates.certificate import CertificateRequest
from marl_aajr.certificates.decisions import Decisions
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.seeds import Purpose, stream
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.victims.victim_policy import VictimPolicy

_DISCRETE: Mapping[str, Mapping[str, int]] = {
    "pgd-margin": {"restarts": 5, "steps": 20},
    "pgd-targeted": {},
    "pgd-strong-margin": {},
}
_CONTINUOUS: Mapping[str, Mapping[str, int]] = {"pgd": {"restarts": 5, "steps": 20}, "pgd-strong": {}}
_ROWS = 4096


class ContradictionError(RuntimeError):
    """An attack changed a decision that is certified: a bound or an attack is wrong."""


@dataclass
class Changes:
    """What attacks of one size changed of some decisions.

    Attributes:
        perturbations: the set, in the units of the network.
        changed: whether some attack changed the decision, `[B]`.
        by: the first attack that did, by row.
        deltas: its δ, by row.
    """

    perturbations: PerturbationSet
    changed: Tensor
    by: dict[int, Attack] = field(default_factory=dict)
    deltas: dict[int, Tensor] = field(default_factory=dict)


def attacks_of(request: CertificateRequest, policy: VictimPolicy, epsilon: float) -> list[Attack]:
    """The attacks of a request at one size, in its units; where it names none, those that fit the policy."""
    if request.attacks:
        attacks = [_within(entry, request) for entry in request.attacks]
    else:
        continuous = isinstance(policy.distribution, DiagGaussian)
        ours = (_CONTINUOUS if continuous else _DISCRETE).items()
        attacks = [make_attack(name, epsilon=epsilon, **settings) for name, settings in ours]
    return [replace(attack, perturbations=request.perturbations(epsilon)) for attack in attacks]


def _within(entry: AttackEntry, request: CertificateRequest) -> Attack:
    """An attack that was asked for; `ValueError`: it has no place in the sets of the certificate."""
    attack = entry.at(1.0, norm=request.norm)
    lasts = isinstance(attack, Fault) or not attack.ready or attack.acts_jointly
    if lasts or not attack.sized or request.norm not in attack.norms:
        raise ValueError(
            f"expected attacks in a ball of ε in {request.norm} that need no training against single "
            f"decisions, got {attack.name!r} ({attack.summary}); take pgd or square, and evaluate the policy "
            f"under {attack.name!r}"
        )
    if entry.epsilon is not None or attack.perturbations != PerturbationSet(epsilon=1.0, norm=request.norm):
        raise ValueError(
            f"expected {attack.name!r} without a set of its own, as a certificate and its attacks share one, "
            f"got {attack.perturbations}; say it of the certificate: --epsilon, --norm, --channel, --mask, "
            "--scale, --low or --high"
        )
    return attack


def attack(decisions: Decisions, attacks: Sequence[Attack], *, seed: int) -> Changes:
    """Attack all decisions by each of several attacks of one set, which is in the units of the network."""
    found = Changes(attacks[0].perturbations, torch.zeros(len(decisions), dtype=torch.bool))
    for each in attacks:
        generator = stream(seed, Purpose.ATTACK)
        for rows in torch.arange(len(decisions)).split(max(1, _ROWS // decisions.policy.passes)):
            some = decisions.select(rows)
            attacked = each(some.policy, some.inputs, generator=generator)
            for place in (attacked.success & ~found.changed[rows]).nonzero().flatten().tolist():
                row = int(rows[place])
                found.by[row], found.deltas[row] = each, attacked.delta[place]
            found.changed[rows] |= attacked.success
    return found


def check(decisions: Decisions, changes: Changes, certified: Tensor, *, epsilon: float) -> None:
    """Compare what is proven with what was found.

    Args:
        decisions: all of them.
        changes: what attacks of one size changed.
        certified: the largest ε that each is certified for, `[B]`.
        epsilon: that size, in the units of `certified`.

    Raises:
        ContradictionError: an attack changed a decision that is certified for this size or a larger one.
    """
    both = changes.changed & (certified >= epsilon)
    if bool(both.any()):
        row = int(both.nonzero()[0])
        raise ContradictionError(_words(decisions, changes, row, float(certified[row]), epsilon))


@torch.no_grad()
def _words(decisions: Decisions, changes: Changes, row: int, certified: float, epsilon: float) -> str:
    """The two that contradict each other, and what a look at them alone says of which is wrong."""
    one, delta = decisions.select(torch.tensor([row])), changes.deltas[row].unsqueeze(0)
    inside = bool(changes.perturbations.contains(delta, one.inputs))
    outputs = one.policy(one.inputs + delta)
    again = bool(greedy_action_changed(one.policy.distribution, one.outputs, outputs))
    before, after = (one.policy.distribution.mode(y)[0].tolist() for y in (one.outputs, outputs))
    suspect = "the bound" if inside and again else "the attack"
    return (
        f"{decisions.named(row)} is certified up to ε = {certified:.6g}, and {changes.by[row].name} changed "
        f"it at ε = {epsilon:g}: one of the two is wrong. Played again, its perturbation (largest size "
        f"{float(changes.perturbations.size(delta)):.6g}, {'' if inside else 'not '}in the set) turns "
        f"{before} into {after}, so that it is {suspect}"
    )
