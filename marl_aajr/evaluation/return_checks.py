"""Cross-checks on the returns: the attacks must come in the order of their strength.

    noise ≥ one step ≥ many steps ≥ twice as many,  small ε ≥ large ε,  none ≥ gradients,  noise ≥ learned

Only differences beyond doubt count: paired over the same episodes, at 99 %, divided by the number of pairs
where one of many suffices. What attacks maximise is a proxy of the return, so an order may honestly be
broken, above all by a team that has learned little; the verdict says what follows from it.

- Fail: noise, one step or an attack without gradients hurts more than the strongest attack with gradients;
  an attack hurts less than a weaker one although it raised the same objective further; a learned adversary
  hurts less than noise, as a traitor fails that hurts less than a random agent.
- Warn, because the lower row stands in the same table, and the worst is chosen among both: an attack hurts
  less than a weaker one that maximises something else, or it got lost, for which the objective's own checks
  fail; a learned adversary hurts less than the strongest attack that does not look ahead.

Twice the steps: the same attack with them, or the strong variant on the same objective, which has more
restarts as well. The suite `quick` has neither: there the objective's check stands alone. Source: Carlini
2019 (arXiv 1902.06705), Croce 2020 (arXiv 2003.01690).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise, product

import numpy as np

from marl_aajr.attacks import ATTACKS, FGSM, PGD, Attack, MarginPGD, StrongMarginPGD, StrongPGD
from marl_aajr.attacks.base import AUTO, resolve_objective
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.objectives import Objective
from marl_aajr.evaluation.crosschecks import above_zero
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, Outcome
from marl_aajr.evaluation.result import ActionsResult, Check, Verdict

_EITHER = (
    "either the gradients are masked, or what the attacks maximise does not follow the return, as for a "
    "policy that has learned little"
)

_Pair = tuple[AttackOutcome, AttackOutcome]
"""A row that must not hurt more than the other row, and the other."""


def return_checks(rows: ActionsResult, distributions: Collection[ActionDistribution]) -> list[Check]:
    """Order of the returns, with paired intervals over the same episodes.

    Args:
        rows: of one kind of actions.
        distributions: of the attacked agents, by which attacks know what to maximise.
    """
    by_size: dict[float, list[AttackOutcome]] = {}
    for row in rows.attacks:
        by_size.setdefault(row.epsilon, []).append(row)
    found = [
        *(_order(rows, by_size) or _steps(rows, by_size, distributions)),
        *_monotone(rows, distributions),
        *_black_box(rows, by_size),
        *_undertrained(rows, by_size),
    ]
    return found or [Check(f"returns ({rows.actions})", "pass", "The returns fall in the expected order.")]


def lower(a: Outcome, b: Outcome, *, among: int = 1) -> bool:
    """Whether a's return is below b's on the same episodes, beyond doubt; one pair of so many."""
    return above_zero(np.subtract(b.returns, a.returns), among=among)


def _order(rows: ActionsResult, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    """Neither noise nor a single step may hurt more than the strongest attack with more steps."""
    for epsilon, found in by_size.items():
        steps = [row for row in found if row.attack.access == "gradients"]
        strong = _lowest([row for row in steps if row.attack.name != FGSM.name] or steps, "gradients")
        if strong is None:
            continue
        for weak in found:
            control = weak.attack.access == "none" or weak.attack.name == FGSM.name
            if control and lower(weak, strong):
                return [
                    Check(
                        f"returns ({rows.actions}): noise, one step ≤ many steps",
                        "fail",
                        f"At ε = {epsilon:g} {weak.attack.name} lowers the return to "
                        f"{weak.mean:.3g}, below {strong.mean:.3g} of {strong.attack.name}, "
                        f"the strongest attack with gradients: {_EITHER}.",
                    )
                ]
    return []


def _steps(
    rows: ActionsResult,
    by_size: Mapping[float, Sequence[AttackOutcome]],
    distributions: Collection[ActionDistribution],
) -> list[Check]:
    """Noise ≤ one step ≤ many steps ≤ twice as many, attack by attack."""
    odd = _odd([pair for found in by_size.values() for pair in _rungs(found)], distributions)
    if not odd:
        return []
    verdict, (weak, strong), more = odd
    return [
        Check(
            f"returns ({rows.actions}): noise ≤ one step ≤ many steps ≤ twice as many",
            verdict,
            f"At ε = {weak.epsilon:g} {weak.attack.name} lowers the return to "
            f"{weak.mean:.3g}, {strong.attack.name} to {strong.mean:.3g} only{more}. What "
            "costs more steps should not hurt less: believe the lowest row.",
        )
    ]


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
        _climbs(weak)
        and _climbs(strong)
        and (strong.name == weak.name or strong.name in (StrongPGD.name, StrongMarginPGD.name))
        and b["objective"] == a["objective"]
        and b["steps"] >= 2 * a["steps"]
        and b["restarts"] >= a["restarts"]
    )


def _climbs(attack: AttackSpec) -> bool:
    return issubclass(ATTACKS.get(attack.name, Attack), PGD)


def _monotone(rows: ActionsResult, distributions: Collection[ActionDistribution]) -> list[Check]:
    """The same attack with more room must not leave more."""
    series: dict[AttackSpec, list[AttackOutcome]] = {}
    for row in rows.attacks:
        if row.attack.access == "gradients":
            series.setdefault(row.attack.at(1.0), []).append(row)
    sizes = [sorted(found, key=lambda row: row.epsilon) for found in series.values()]
    odd = _odd([pair for found in sizes for pair in pairwise(found)], distributions)
    if not odd:
        return []
    verdict, (a, b), more = odd
    return [
        Check(
            f"returns ({rows.actions}): larger ε, lower return",
            verdict,
            f"{b.attack.name} leaves a return of {b.mean:.3g} at ε = "
            f"{b.epsilon:g}, above {a.mean:.3g} at "
            f"{a.epsilon:g}{more}. An adversary with more room can do what it could "
            "with less: read the smaller of the two.",
        )
    ]


def _odd(
    pairs: Sequence[_Pair], distributions: Collection[ActionDistribution]
) -> tuple[Verdict, _Pair, str] | None:
    """The gravest of the pairs whose first hurts more, its verdict, and how many more there are, in words."""
    found = [(a, b) for a, b in pairs if lower(a, b, among=len(pairs))]
    if not found:
        return None
    grave = [(a, b) for a, b in found if _went_further(a, b, distributions)]
    more = f", and {len(found) - 1} more like it" if len(found) > 1 else ""
    return ("fail", grave[0], more) if grave else ("warn", found[0], more)


def _went_further(a: AttackOutcome, b: AttackOutcome, distributions: Collection[ActionDistribution]) -> bool:
    """Whether the second raised the same objective of the same agents further than the first."""
    same = all(_objective(a, d) == _objective(b, d) for d in distributions)
    return same and set(a.agents) == set(b.agents) and b.objective_gain > a.objective_gain


def _objective(row: AttackOutcome, distribution: ActionDistribution) -> str | Objective:
    return resolve_objective(row.attack.settings.get("objective", AUTO), distribution)


def _black_box(rows: ActionsResult, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    for epsilon, found in by_size.items():
        white = _lowest(found, "gradients")
        if white is None:
            continue
        for access in ("queries", "surrogate"):
            black = _lowest(found, access)
            if black is not None and lower(black, white):
                return [
                    Check(
                        f"returns ({rows.actions}): no gradients ≤ gradients",
                        "fail",
                        f"At ε = {epsilon:g} {black.attack.name} lowers the return to "
                        f"{black.mean:.3g} without the policy's gradients, below "
                        f"{white.mean:.3g} of {white.attack.name}, the strongest with them: "
                        f"{_EITHER}.",
                    )
                ]
    return []


def _undertrained(rows: ActionsResult, by_size: Mapping[float, Sequence[AttackOutcome]]) -> list[Check]:
    """Learned adversaries that hurt less than what they should be stronger than: one finding for all."""
    weak = [
        (verdict, row, what, rival)
        for found in by_size.values()
        for verdict, what, rival in _rivals(rows.clean, found)
        for row in found
        if row.attack.access == "learned" and lower(rival, row)
    ]
    if not weak:
        return []
    verdict, row, what, rival = min(weak, key=lambda odd: odd[0] != "fail")
    others = len({odd[1].attack for odd in weak}) - 1
    more = f", and {others} more like it" if others else ""
    return [
        Check(
            f"returns ({rows.actions}): {'untrained' if verdict == 'fail' else 'myopic'} ≤ learned",
            verdict,
            f"Undertrained: at ε = {row.epsilon:g} {row.attack.name} leaves a return of "
            f"{row.mean:.3g}, above {rival.mean:.3g} of {what}{more}. That is no evidence of "
            "robustness: train it for longer, or with a search (adversary train --env-steps, --search).",
        )
    ]


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


def agent_checks(rows: ActionsResult) -> list[Check]:
    """A trained adversary must hurt as much as a random or idle agent in its place, and the victim's own."""
    found = []
    for row in rows.adversarial_agents:
        if not row.trained:
            continue
        rivals = {"the agent that it replaces": rows.clean} | {
            f"a {control.kind} one": control
            for control in rows.adversarial_agents
            if not control.trained and control.agents == row.agents
        }
        name = f"returns ({rows.actions}): {row.label}"
        weaker = {what: rival for what, rival in rivals.items() if lower(rival, row)}
        if not weaker:
            found.append(Check(name, "pass", "It hurts as much as random and idle agents in its place."))
            continue
        what = min(weaker, key=lambda rival: weaker[rival].mean)
        found.append(
            Check(
                name,
                "fail",
                f"Undertrained: it leaves the team a return of {row.mean:.3g}, {what} leaves "
                f"{weaker[what].mean:.3g}. Train it longer before you take its row for robustness.",
            )
        )
    return found
