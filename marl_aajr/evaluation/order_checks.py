"""Checks of the order of the attacks: what is stronger must do more, to the objective and to the return.

    objective   noise ≤ one step ≤ many steps ≈ twice as many,  small ε ≤ large ε,  none ≤ gradients
    returns     noise ≥ one step ≥ many steps ≥ twice as many,  small ε ≥ large ε,  none ≥ gradients,
                noise ≥ learned

Only differences beyond doubt count, at 99 %, divided by the number of pairs where one of many suffices:
paired over the same decisions for the objective, over the same episodes for the returns.

What attacks maximise is a proxy of the return, so an order of returns may honestly be broken, above all by a
team that has learned little; the verdict says what follows from it.

- Fail: noise, one step or an attack without gradients hurts more than the strongest attack with gradients;
  an attack hurts less than a weaker one although it raised the same objective further; a learned adversary
  hurts less than noise, as a traitor fails that hurts less than a random agent.
- Warn, because the lower row stands in the same table, and the worst is chosen among both: an attack hurts
  less than a weaker one that maximises something else, or it got lost, for which the objective's own checks
  fail; a learned adversary hurts less than the strongest attack that does not look ahead.

Twice the steps: the same attack with them, or its strong variant; the suite `quick` has neither. Source:
Carlini 2019 (arXiv 1902.06705), Croce 2020 (arXiv 2003.01690), Zimmermann 2022 (arXiv 2206.13991).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from marl_aajr.attacks import ATTACKS, FGSM, PGD, Attack, MarginPGD, StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import AUTO, resolve_objective
from marl_aajr.core.checks import grouped, written
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.evaluation.intervals import student_interval
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.result import ActionsResult, Check, Verdict

_LEVEL = 0.99
_CONVERGED = 0.1
_MARGIN = 0.05
"""Share of the larger gain that a weaker attack may be ahead before it is called ahead."""

_WHITE = ("one step", "ten steps", "twenty steps", "strong")

Gains = Mapping[str, Tensor]
"""By attack: g(δ) − g(0) of every probed decision, `[B]`."""

_Distributions = Collection[ActionDistribution]
_Pair = tuple[AttackOutcome, AttackOutcome]  # The first row must not hurt more than the second.


def objective_checks(gains: Mapping[float, Gains]) -> list[Check]:
    """Order of the inner objective, row by row, by ε."""
    same = "On the same decisions {} is at least as strong as {}."
    few = "Twice the steps change the objective by less than 10 %."
    black = "No attack without gradients beats those with them on the same decisions."
    rungs = [("noise", "one step"), ("one step", "ten steps")]
    return [
        *(_check(f"{a} ≤ {b}", "fail", _rung(gains, a, b), same.format(b, a)) for a, b in rungs),
        _check("ten steps ≈ twenty steps", "warn", _converged(gains), few),
        _check("larger ε, larger objective", "fail", _larger(gains), "The objective rises with ε."),
        _check("no gradients ≤ gradients", "fail", _without_gradients(gains), black),
    ]


def _check(name: str, verdict: Verdict, found: Iterator[str], otherwise: str) -> Check:
    """The first of the findings, or that there is none."""
    text = next(found, None)
    return Check(name, "pass", otherwise) if text is None else Check(name, verdict, text)


def _rung(gains: Mapping[float, Gains], weak: str, strong: str) -> Iterator[str]:
    for epsilon, gain in gains.items():
        if _ahead(gain[weak], gain[strong]):
            share = (gain[weak] > gain[strong]).double().mean().item()
            yield (
                f"At ε = {epsilon:g} {weak} raises the objective by {gain[weak].mean():.3g}, {strong} by "
                f"{gain[strong].mean():.3g} only ({share:.0%} of the decisions are the wrong way round)."
            )


def _converged(gains: Mapping[float, Gains]) -> Iterator[str]:
    for epsilon, gain in gains.items():
        ten, twenty = gain["ten steps"].mean().item(), gain["twenty steps"].mean().item()
        if twenty - ten > _CONVERGED * abs(twenty):
            yield (
                f"At ε = {epsilon:g} twice the steps raise the objective from {ten:.3g} to {twenty:.3g}: ten "
                "steps are too few for this policy; believe the longer attacks."
            )


def _larger(gains: Mapping[float, Gains]) -> Iterator[str]:
    for small, large in pairwise(sorted(gains)):
        less, more = gains[small]["twenty steps"], gains[large]["twenty steps"]
        if _ahead(less, more):
            yield (
                f"At ε = {large:g} the same attack gains less than at {small:g} ({more.mean():.3g} against "
                f"{less.mean():.3g}): it gets lost on this policy."
            )


def _without_gradients(gains: Mapping[float, Gains]) -> Iterator[str]:
    for epsilon, gain in gains.items():
        best = torch.stack([gain[rung] for rung in _WHITE]).amax(0)
        for rung in gain.keys() - {*_WHITE, "noise"}:
            if _ahead(gain[rung], best):
                share = (gain[rung] > best).double().mean().item()
                yield (
                    f"Gradient masking: at ε = {epsilon:g} {rung} raises the objective by "
                    f"{gain[rung].mean():.3g} without the policy's gradients, every attack with them by "
                    f"{best.mean():.3g} at most (more in {share:.0%} of the decisions)."
                )


def _ahead(weak: Tensor, strong: Tensor) -> bool:
    """Whether the weaker attack gains more, by a margin and beyond doubt (paired t over decisions)."""
    difference = (weak - strong).numpy()
    larger = max(abs(weak.mean().item()), abs(strong.mean().item()))
    return float(difference.mean()) > max(_MARGIN * larger, 1e-9) and _above_zero(difference)


def _above_zero(differences: np.ndarray, *, among: int = 1) -> bool:
    """Whether the paired interval of the mean difference lies above zero; of so many (Bonferroni)."""
    low, _ = student_interval(differences, level=1 - (1 - _LEVEL) / among)
    return low is not None and low > 0


def return_checks(rows: ActionsResult, distributions: _Distributions) -> list[Check]:
    """Order of the returns; by the attacked agents' distributions attacks know what to maximise."""
    sizes = list(grouped((row.epsilon, row) for row in rows.attacks).values())
    name = f"returns ({rows.actions})"
    checks = []
    controls = (pair for found in sizes for pair in _controls(found))
    if beaten := _beaten(controls, "", "attack with gradients"):
        checks.append(Check(f"{name}: noise, one step ≤ many steps", "fail", beaten))
    elif odd := _odd([pair for found in sizes for pair in _rungs(found)], distributions):
        verdict, (weak, strong), more = odd
        text = (
            f"At ε = {weak.epsilon:g} {weak.attack.name} lowers the return to {written(weak.mean)}, "
            f"{strong.attack.name} to {written(strong.mean)} only{more}. What costs more steps should not "
            "hurt less: believe the lowest row."
        )
        checks.append(Check(f"{name}: noise ≤ one step ≤ many steps ≤ twice as many", verdict, text))
    checks += _monotone(name, rows.attacks, distributions)
    blacks = (
        (_lowest(found, access), _lowest(found, "gradients"))
        for found, access in product(sizes, ("queries", "surrogate"))
    )
    if beaten := _beaten(blacks, " without the policy's gradients", "with them"):
        checks.append(Check(f"{name}: no gradients ≤ gradients", "fail", beaten))
    checks += _undertrained(name, rows.clean, sizes)
    return checks or [Check(name, "pass", "The returns fall in the expected order.")]


def lower(a: Outcome, b: Outcome, *, among: int = 1) -> bool:
    """Whether a's return is below b's on the same episodes, beyond doubt; one pair of so many."""
    return _above_zero(np.subtract(b.returns, a.returns), among=among)


def _controls(found: Sequence[AttackOutcome]) -> Iterator[tuple[AttackOutcome, AttackOutcome | None]]:
    """Noise and a single step, each with the strongest attack with more steps."""
    steps = [row for row in found if row.attack.access == "gradients"]
    strong = _lowest([row for row in steps if row.attack.name != FGSM.name] or steps, "gradients")
    return ((row, strong) for row in found if row.attack.access == "none" or row.attack.name == FGSM.name)


def _beaten(
    pairs: Iterable[tuple[AttackOutcome | None, AttackOutcome | None]], how: str, strongest: str
) -> str | None:
    """The first of the pairs whose weaker attack hurts more, in words."""
    for weak, strong in pairs:
        if weak is not None and strong is not None and lower(weak, strong):
            return (
                f"At ε = {weak.epsilon:g} {weak.attack.name} lowers the return to {written(weak.mean)}{how}, "
                f"below {written(strong.mean)} of {strong.attack.name}, the strongest {strongest}: either "
                "the gradients are masked, or what the attacks maximise does not follow the return, as for a "
                "policy that has learned little."
            )
    return None


def _rungs(found: Sequence[AttackOutcome]) -> Iterator[_Pair]:
    noise = [row for row in found if row.attack.access == "none"]
    one = [row for row in found if row.attack.name == FGSM.name]
    many = [row for row in found if row.attack.name in (PGD.name, MarginPGD.name)]
    yield from product(noise, one)
    yield from product(one, many)
    yield from ((a, b) for a, b in product(many, found) if _twice(a.attack, b.attack))


def _twice(weak: AttackSpec, strong: AttackSpec) -> bool:
    """Whether the second takes twice the steps of the first or more to the same, from as many starts."""
    a, b = weak.settings, strong.settings
    return (
        all(issubclass(ATTACKS.get(attack.name, Attack), PGD) for attack in (weak, strong))
        and strong.name in (weak.name, StrongPGD.name, StrongMarginPGD.name)
        and b["objective"] == a["objective"]
        and b["steps"] >= 2 * a["steps"]
        and b["restarts"] >= a["restarts"]
    )


def _monotone(name: str, rows: Iterable[AttackOutcome], distributions: _Distributions) -> Iterator[Check]:
    """The same attack with more room must not leave more."""
    series = grouped((row.attack.at(1.0), row) for row in rows if row.attack.access == "gradients")
    sizes = [sorted(found, key=lambda row: row.epsilon) for found in series.values()]
    if odd := _odd([pair for found in sizes for pair in pairwise(found)], distributions):
        verdict, (a, b), more = odd
        text = (
            f"{b.attack.name} leaves a return of {written(b.mean)} at ε = {b.epsilon:g}, above "
            f"{written(a.mean)} at {a.epsilon:g}{more}. An adversary with more room can do what it could "
            "with less: read the smaller of the two."
        )
        yield Check(f"{name}: larger ε, lower return", verdict, text)


def _odd(pairs: Sequence[_Pair], distributions: _Distributions) -> tuple[Verdict, _Pair, str] | None:
    """The gravest of the pairs whose first hurts more, its verdict, and how many more there are, in words."""
    found = [(a, b) for a, b in pairs if lower(a, b, among=len(pairs))]
    if grave := [(a, b) for a, b in found if _went_further(a, b, distributions)]:
        return "fail", grave[0], _more(found)
    return ("warn", found[0], _more(found)) if found else None


def _more(found: Collection[object]) -> str:
    return f", and {len(found) - 1} more like it" if len(found) > 1 else ""


def _went_further(a: AttackOutcome, b: AttackOutcome, distributions: _Distributions) -> bool:
    """Whether the second raised the same objective of the same agents further than the first."""
    mine, other = (
        [resolve_objective(row.attack.settings.get("objective", AUTO), d) for d in distributions]
        for row in (a, b)
    )
    return mine == other and set(a.agents) == set(b.agents) and b.objective_gain > a.objective_gain


def _undertrained(name: str, clean: Outcome, sizes: Iterable[Sequence[AttackOutcome]]) -> Iterator[Check]:
    """Learned adversaries that hurt less than what they should be stronger than: one finding for all."""
    weak = [
        (verdict, row, what, rival)
        for found in sizes
        for verdict, what, rival in _rivals(clean, found)
        for row in found
        if row.attack.access == "learned" and lower(rival, row)
    ]
    if weak:
        verdict, row, what, rival = min(weak, key=lambda odd: odd[0] != "fail")
        text = (
            f"Undertrained: at ε = {row.epsilon:g} {row.attack.name} leaves a return of {written(row.mean)}, "
            f"above {written(rival.mean)} of {what}{_more({odd[1].attack for odd in weak})}. That is no "
            "evidence of robustness: train it for longer, or with a search (adversary train --env-steps, "
            "--search)."
        )
        yield Check(f"{name}: {'untrained' if verdict == 'fail' else 'myopic'} ≤ learned", verdict, text)


def _rivals(clean: Outcome, found: Sequence[AttackOutcome]) -> Iterator[tuple[Verdict, str, Outcome]]:
    """The rows that a learned adversary should hurt more than, and the verdict where it does not."""
    yield "fail", "no attack", clean
    if (noise := _lowest(found, "none")) is not None:
        yield "fail", noise.attack.name, noise
    if (myopic := _lowest(found, "gradients")) is not None:
        yield "warn", f"{myopic.attack.name}, which does not look ahead", myopic


def _lowest(rows: Sequence[AttackOutcome], access: str) -> AttackOutcome | None:
    found = [row for row in rows if row.attack.access == access]
    return min(found, key=lambda row: row.mean, default=None)


def agent_checks(rows: ActionsResult) -> Iterator[Check]:
    """A trained adversary must hurt as much as a random or idle agent in its place, and the victim's own."""
    for row in (row for row in rows.adversarial_agents if row.trained):
        rivals = {"the agent that it replaces": rows.clean} | {
            f"a {control.kind} one": control
            for control in rows.adversarial_agents
            if not control.trained and control.agents == row.agents
        }
        weaker = {what: rival for what, rival in rivals.items() if lower(rival, row)}
        text = "It hurts as much as random and idle agents in its place."
        if weaker:
            what, rival = min(weaker.items(), key=lambda item: item[1].mean)
            text = (
                f"Undertrained: it leaves the team a return of {written(row.mean)}, {what} leaves "
                f"{written(rival.mean)}. Train it longer before you take its row for robustness."
            )
        yield Check(f"returns ({rows.actions}): {row.label}", "fail" if weaker else "pass", text)
