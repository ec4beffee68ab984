"""Cross-checks on the inner objective: the attacks must come in the order of their strength.

Row by row on the same decisions: noise ≤ one step ≤ many steps ≤ twice as many, more with a larger ε, and
nothing without gradients above what has them. Each evaluation with attacks plays these on decisions of its
own, whichever attacks its suite has; the returns have `return_checks`. Source:
Carlini 2019 (arXiv 1902.06705), Croce 2020 (arXiv 2003.01690), Zimmermann 2022 (arXiv 2206.13991).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import FGSM, PGD, Attack, SquareAttack, StrongPGD, Transfer, UniformNoise
from marl_aajr.core.seeds import Purpose, derived_seed, stream
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation.episodes import prepare
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.outcomes import Units, student_interval
from marl_aajr.evaluation.preflight import DecisionSample, ObservationSampler, examine, report
from marl_aajr.evaluation.result import Check
from marl_aajr.victims import Victim

_MARGIN = 0.05
"""Share of the larger gain that a weaker attack may be ahead before it is called ahead."""

_PROBED = 256
"""Decisions of each policy on which the order of the attacks is checked."""

_LEVEL = 0.99
_CONVERGED = 0.1

_WHITE = ("one step", "ten steps", "twenty steps", "strong")

Gains = Mapping[str, Tensor]
"""By attack: g(δ) − g(0) of every probed decision, `[B]`."""


def attack_checks(
    evaluator: Evaluator, attacks: Sequence[Attack], observed: ObservationSampler
) -> list[Check]:
    """The checks of the policies and of the objective, at the sizes of these attacks; at least one."""
    victim, units = evaluator.victim, evaluator.units
    groups = [g for g in victim.alike(evaluator.env.possible_agents) if set(g) & set(evaluator.agents)]
    samples = observed.samples(groups, rows=_PROBED)
    by_size = {a.perturbations.epsilon: a.perturbations for a in attacks}
    noise = ladder(by_size[max(by_size)])["noise"]
    health = [
        examine(
            sample,
            victim,
            prepare(noise, victim, sample.agent, units=units).perturbations,
            generator=stream(evaluator.seed, Purpose.PROBE),
        )
        for sample in samples
    ]
    found = report(health)
    if all(h.differentiable for h in health):
        seed = derived_seed(evaluator.seed, Purpose.PROBE)
        transfers = list({a.source: a for a in attacks if isinstance(a, Transfer)}.values())
        gains = {
            epsilon: climb(samples, victim, ladder(by_size[epsilon], transfers), units=units, seed=seed)
            for epsilon in sorted(by_size)
        }
        found += objective_checks(gains)
    return found


def ladder(perturbations: PerturbationSet, transfers: Sequence[Transfer] = ()) -> dict[str, Attack]:
    """The attacks that are compared row by row, all on the objective that fits the policy."""
    steps = PGD(perturbations=perturbations, objective="auto", restarts=1)
    rungs: dict[str, Attack] = {
        "noise": UniformNoise(perturbations=perturbations),
        "one step": FGSM(perturbations=perturbations),
        "ten steps": steps,
        "twenty steps": replace(steps, steps=20),
        "strong": StrongPGD(perturbations=perturbations, objective="auto"),
        "square": SquareAttack(perturbations=perturbations),
    }
    for transfer in transfers:
        rungs[f"transfer {transfer.source}".strip()] = replace(transfer, perturbations=perturbations)
    return rungs


def climb(
    samples: Sequence[DecisionSample], victim: Victim, rungs: Mapping[str, Attack], *, units: Units, seed: int
) -> dict[str, Tensor]:
    """The gain of each attack on each probed decision; all start from the same random numbers."""
    gains: dict[str, list[Tensor]] = {name: [] for name in rungs}
    for sample in samples:
        for name, attack in rungs.items():
            prepared = prepare(attack, victim, sample.agent, units=units)
            generator = torch.Generator().manual_seed(seed)
            attacked = prepared(sample.policy, sample.obs, generator=generator)
            gains[name].append((attacked.value - attacked.clean_value).double())
    return {name: torch.cat(parts) for name, parts in gains.items()}


def objective_checks(gains: Mapping[float, Gains]) -> list[Check]:
    """Order of the inner objective, row by row, by ε."""
    return [
        *_order(gains, "noise", "one step"),
        *_order(gains, "one step", "ten steps"),
        _converged(gains),
        _monotone(gains),
        *_black_box(gains),
    ]


def _order(gains: Mapping[float, Gains], weak: str, strong: str) -> list[Check]:
    name = f"{weak} ≤ {strong}"
    for epsilon, gain in gains.items():
        if _ahead(gain[weak], gain[strong]):
            share = (gain[weak] > gain[strong]).double().mean().item()
            return [
                Check(
                    name,
                    "fail",
                    f"At ε = {epsilon:g} {weak} raises the objective by {gain[weak].mean():.3g}, {strong} by "
                    f"{gain[strong].mean():.3g} only ({share:.0%} of the decisions are the wrong way round).",
                )
            ]
    return [Check(name, "pass", f"On the same decisions {strong} is at least as strong as {weak}.")]


def _converged(gains: Mapping[float, Gains]) -> Check:
    name = "ten steps ≈ twenty steps"
    for epsilon, gain in gains.items():
        ten, twenty = gain["ten steps"].mean().item(), gain["twenty steps"].mean().item()
        if twenty - ten > _CONVERGED * abs(twenty):
            return Check(
                name,
                "warn",
                f"At ε = {epsilon:g} twice the steps raise the objective from {ten:.3g} to {twenty:.3g}: ten "
                "steps are too few for this policy; believe the longer attacks.",
            )
    return Check(name, "pass", "Twice the steps change the objective by less than 10 %.")


def _monotone(gains: Mapping[float, Gains]) -> Check:
    name = "larger ε, larger objective"
    for small, large in pairwise(sorted(gains)):
        if _ahead(gains[small]["twenty steps"], gains[large]["twenty steps"]):
            return Check(
                name,
                "fail",
                f"At ε = {large:g} the same attack gains less than at {small:g} "
                f"({gains[large]['twenty steps'].mean():.3g} against "
                f"{gains[small]['twenty steps'].mean():.3g}): it gets lost on this policy.",
            )
    return Check(name, "pass", "The objective rises with ε.")


def _black_box(gains: Mapping[float, Gains]) -> list[Check]:
    name = "no gradients ≤ gradients"
    for epsilon, gain in gains.items():
        best = torch.stack([gain[rung] for rung in _WHITE]).amax(0)
        for rung in gain.keys() - {*_WHITE, "noise"}:
            if _ahead(gain[rung], best):
                share = (gain[rung] > best).double().mean().item()
                return [
                    Check(
                        name,
                        "fail",
                        f"Gradient masking: at ε = {epsilon:g} {rung} raises the objective by "
                        f"{gain[rung].mean():.3g} without the policy's gradients, every attack with them by "
                        f"{best.mean():.3g} at most (more in {share:.0%} of the decisions).",
                    )
                ]
    return [Check(name, "pass", "No attack without gradients beats those with them on the same decisions.")]


def _ahead(weak: Tensor, strong: Tensor) -> bool:
    """Whether the weaker attack gains more, by a margin and beyond doubt (paired t over decisions)."""
    difference = (weak - strong).numpy()
    mean = float(difference.mean())
    if mean <= _MARGIN * max(abs(weak.mean().item()), abs(strong.mean().item())) or mean <= 1e-9:
        return False
    return above_zero(difference)


def above_zero(differences: np.ndarray, *, among: int = 1) -> bool:
    """Whether the paired interval of the mean difference lies above zero; of so many (Bonferroni)."""
    low, _ = student_interval(differences, level=1 - (1 - _LEVEL) / among)
    return low is not None and low > 0
