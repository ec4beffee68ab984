"""Cross-checks: whether the attacks come in the order in which they must.

On the inner objective, row by row on the same decisions: noise ≤ one step ≤ many steps ≤ twice as many, more
with a larger ε, and nothing without gradients above what has them. For returns only where paired intervals
leave no doubt: the objective is a proxy, and attacked returns can fall below a random policy's. Source:
Carlini 2019 (arXiv 1902.06705), Croce 2020 (arXiv 2003.01690), Zimmermann 2022 (arXiv 2206.13991).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from marl_aajr.attacks import FGSM, PGD, Attack, SquareAttack, StrongPGD, Transfer, UniformNoise
from marl_aajr.evaluation.adversary import prepare
from marl_aajr.evaluation.outcomes import AttackOutcome, Outcome
from marl_aajr.evaluation.probe import Sample
from marl_aajr.evaluation.results import Check, Rows
from marl_aajr.evaluation.suites import Units
from marl_aajr.threat import PerturbationSet
from marl_aajr.victims import Victim

_MARGIN = 0.05
"""Share of the larger gain that a weaker attack may be ahead before it is called ahead."""

_LEVEL = 0.99
_CONVERGED = 0.1

_WHITE = ("one step", "ten steps", "twenty steps", "strong")

_EITHER = (
    "either the gradients are masked, or what the attacks maximise does not follow the return, as for a "
    "policy that has learned little"
)

Gains = Mapping[str, Tensor]
"""By attack: g(δ) − g(0) of every probed decision, ``[B]``."""


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
    samples: Sequence[Sample], victim: Victim, rungs: Mapping[str, Attack], *, units: Units, seed: int
) -> dict[str, Tensor]:
    """What each attack gains on each probed decision; all start from the same random numbers."""
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


def return_checks(rows: Rows) -> list[Check]:
    """Order of the returns, with paired intervals over the same episodes."""
    by_size: dict[float, list[AttackOutcome]] = {}
    for row in rows.attacks:
        by_size.setdefault(row.attack.perturbations.epsilon, []).append(row)
    found = [
        *_return_order(rows, by_size),
        *_return_monotone(rows),
        *_return_black_box(rows, by_size),
        *_undertrained(rows, by_size),
    ]
    return found or [Check(f"returns ({rows.actions})", "pass", "The returns fall in the expected order.")]


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
    return _above_zero(difference)


def _return_order(rows: Rows, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    """Neither noise nor a single step may hurt more than the strongest attack with more steps."""
    for epsilon, found in by_size.items():
        steps = [row for row in found if row.attack.access == "gradients"]
        strong = _lowest([row for row in steps if not isinstance(row.attack, FGSM)] or steps, "gradients")
        if strong is None:
            continue
        for weak in found:
            control = weak.attack.access == "none" or isinstance(weak.attack, FGSM)
            if control and lower(weak.outcome, strong.outcome):
                return [
                    Check(
                        f"returns ({rows.actions}): noise, one step ≤ many steps",
                        "fail",
                        f"At ε = {epsilon:g} {weak.attack.name} lowers the return to "
                        f"{weak.outcome.mean:.3g}, below {strong.outcome.mean:.3g} of {strong.attack.name}, "
                        f"the strongest attack with gradients: {_EITHER}.",
                    )
                ]
    return []


def _return_monotone(rows: Rows) -> list[Check]:
    series: dict[str, list[AttackOutcome]] = {}
    for row in rows.attacks:
        if row.attack.access == "gradients":
            series.setdefault(row.attack.settings, []).append(row)
    odd = []
    for found in series.values():
        ordered = sorted(found, key=lambda row: row.attack.perturbations.epsilon)
        odd += [(a, b) for a, b in pairwise(ordered) if lower(a.outcome, b.outcome)]
    if not odd:
        return []
    a, b = odd[0]
    more = f", and {len(odd) - 1} more like it" if len(odd) > 1 else ""
    return [
        Check(
            f"returns ({rows.actions}): larger ε, lower return",
            "warn",
            f"{b.attack.name} leaves a return of {b.outcome.mean:.3g} at ε = "
            f"{b.attack.perturbations.epsilon:g}, above {a.outcome.mean:.3g} at "
            f"{a.attack.perturbations.epsilon:g}{more}. An adversary with more room can do what it could "
            "with less: read the smaller of the two.",
        )
    ]


def _return_black_box(rows: Rows, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    for epsilon, found in by_size.items():
        white = _lowest(found, "gradients")
        if white is None:
            continue
        for access in ("queries", "surrogate"):
            black = _lowest(found, access)
            if black is not None and lower(black.outcome, white.outcome):
                return [
                    Check(
                        f"returns ({rows.actions}): no gradients ≤ gradients",
                        "fail",
                        f"At ε = {epsilon:g} {black.attack.name} lowers the return to "
                        f"{black.outcome.mean:.3g} without the policy's gradients, below "
                        f"{white.outcome.mean:.3g} of {white.attack.name}, the strongest with them: "
                        f"{_EITHER}.",
                    )
                ]
    return []


def _undertrained(rows: Rows, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    """Learned adversaries that are weaker than the strongest myopic attack: one finding for all of them."""
    weak = []
    for epsilon, found in by_size.items():
        myopic = _lowest(found, "gradients")
        if myopic is not None:
            learned = [row for row in found if row.attack.access == "learned"]
            weak += [(epsilon, row, myopic) for row in learned if lower(myopic.outcome, row.outcome)]
    if not weak:
        return []
    epsilon, row, myopic = weak[0]
    more = f", and {len(weak) - 1} more like it" if len(weak) > 1 else ""
    return [
        Check(
            f"returns ({rows.actions}): myopic ≤ learned",
            "warn",
            f"Undertrained: at ε = {epsilon:g} {row.attack.name} leaves a return of "
            f"{row.outcome.mean:.3g}, above {myopic.outcome.mean:.3g} of {myopic.attack.name}, which does "
            f"not look ahead{more}. That is no evidence of robustness: train it for longer, or with a "
            "search (adversary train --env-steps, --search).",
        )
    ]


def _lowest(rows: Sequence[AttackOutcome], access: str) -> AttackOutcome | None:
    found = [row for row in rows if row.attack.access == access]
    return min(found, key=lambda row: row.outcome.mean, default=None)


def lower(a: Outcome, b: Outcome) -> bool:
    """Whether a's return is below b's on the same episodes, beyond doubt."""
    return _above_zero(np.subtract(b.returns, a.returns))


def _above_zero(differences: np.ndarray) -> bool:
    """Whether the paired interval of the mean difference lies above zero."""
    if len(differences) < 2:
        return False
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return bool(differences.mean() > stats.t.ppf(0.5 + _LEVEL / 2, len(differences) - 1) * error)
