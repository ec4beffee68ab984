"""Checks of the order of attacks on words, by the worst sentence with one other word.

    objective   random ≤ greedy,   every attack ≤ every sentence (one word),   fewer words ≤ more
    returns     random ≥ the strongest,   fewer words ≥ more

Other than in a ball, an attack with gradients may lose to one without and hide nothing: HotFlip follows the
slope at a word to words that are far from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from marl_aajr.attacks import Attack, ExhaustiveWords, GradientWords, GreedyWords, RandomWords
from marl_aajr.core.checks import grouped, written
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.order_checks import lower
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.result import ActionsResult, Check

_Climb = Callable[[Mapping[str, Attack]], Mapping[str, Tensor]]
"""From attacks to their gains on the same decisions, `[B]`."""


def in_ball(perturbations: PerturbationSet) -> PerturbationSet:
    """Where noise is looked for in policies: words move to their neighbours."""
    if not isinstance(perturbations, WordBudget):
        return perturbations
    return PerturbationSet(epsilon=1.0, norm="l2", mask=perturbations.mask, channels=perturbations.channels)


def word_objective_checks(budgets: Sequence[WordBudget], climb: _Climb) -> list[Check]:
    """Order of the inner objective on probed decisions, by sizes in their order."""

    def tried(budget: WordBudget) -> Mapping[str, Tensor]:
        return climb(
            {cls.name: cls(perturbations=budget) for cls in (RandomWords, GradientWords, GreedyWords)}
        )

    gains = {int(budget.epsilon): tried(budget) for budget in budgets}
    one = replace(budgets[0], epsilon=1)
    single = gains[1] if 1 in gains else tried(one)
    try:
        (most,) = climb({"all": ExhaustiveWords(perturbations=one)}).values()
    except ValueError:  # more sentences than are tried
        most = None
    found = [
        _check(
            "random words ≤ greedy", _random(gains), "On the same decisions greedy gains at least as much."
        ),
        _check("more words, larger objective", _more(gains), "The objective rises with the words."),
    ]
    if most is not None:
        text = "Of all sentences with one other word none gains more than what was found to be the worst."
        found.append(_check("one word ≤ every sentence", _exact(single, most), text))
    return found


def word_return_checks(rows: ActionsResult) -> Iterator[Check]:
    """Order of the returns."""
    name = f"returns ({rows.actions})"
    by_size = grouped((row.epsilon, row) for row in rows.attacks)
    pairs = [pair for found in by_size.values() for pair in _controls(found)]
    text = next(
        (
            f"With {_count(a)} {a.attack.name} lowers the return to {written(a.mean)}, below "
            f"{written(b.mean)} of {b.attack.name}: what the attacks maximise does not follow the return."
            for a, b in pairs
            if lower(a, b, among=len(pairs))
        ),
        None,
    )
    otherwise = "No random words hurt more than the strongest attack."
    yield Check(f"{name}: random words ≥ attacks", "pass" if text is None else "fail", text or otherwise)
    series = grouped((row.attack.at(1.0), row) for row in rows.attacks if row.attack.access != "none")
    steps = [p for own in series.values() for p in pairwise(sorted(own, key=lambda row: row.epsilon))]
    odd = next(((a, b) for a, b in steps if lower(a, b, among=len(steps))), None)
    if odd is not None:
        a, b = odd
        text = (
            f"{b.attack.name} leaves a return of {written(b.mean)} with {_count(b)}, above {written(a.mean)} "
            f"with {a.epsilon:g}: read the smaller of the two."
        )
        yield Check(f"{name}: more words, lower return", "warn", text)


def embedding_checks(evaluator: Evaluator, attacks: Sequence[Attack]) -> Iterator[Check]:
    """What attacks in a ball say of words, where policies read them: how many synonyms are in it."""
    words, largest = evaluator.env.words, max(attack.perturbations.epsilon for attack in attacks)
    policy = evaluator.victim.policy(evaluator.agents[0])
    if words is None or policy.block is None or not words.legal.any():
        return
    table, order = policy.embeddings, 2.0 if evaluator.suite.norm == "l2" else torch.inf
    away = torch.linalg.vector_norm(table[words.others] - table.unsqueeze(1), ord=order, dim=-1)[words.legal]
    within = (away <= largest * (1 + 1e-4)).double().mean().item()
    text = (
        "Attacks move embeddings to where no word is: an upper bound on what other words within ε can do. "
        f"Of all synonyms {within:.0%} are within ε = {largest:g}, the farthest at {away.max().item():.3g}."
    )
    yield Check("embedded words", "pass", text)


def _count(row: AttackOutcome) -> str:
    return f"{row.epsilon:g} word" + ("s" if row.epsilon > 1 else "")


def _controls(found: Sequence[AttackOutcome]) -> Iterator[tuple[AttackOutcome, AttackOutcome]]:
    """Random words, each with the strongest attack of the same size."""
    attacks = [row for row in found if row.attack.access != "none"]
    if attacks:
        strongest = min(attacks, key=lambda row: row.mean)
        yield from ((row, strongest) for row in found if row.attack.access == "none")


def _check(name: str, found: Iterator[str], otherwise: str) -> Check:
    text = next(found, None)
    return Check(name, "pass", otherwise) if text is None else Check(name, "fail", text)


def _random(gains: Mapping[int, Mapping[str, Tensor]]) -> Iterator[str]:
    for count, own in gains.items():
        random, greedy = (own[cls.name].mean().item() for cls in (RandomWords, GreedyWords))
        if random > greedy + 1e-9:
            yield f"With {count} words random ones gain {random:.3g}, greedy ones {greedy:.3g} only."


def _more(gains: Mapping[int, Mapping[str, Tensor]]) -> Iterator[str]:
    for (few, less), (many, more) in pairwise(gains.items()):
        for name in (GradientWords.name, GreedyWords.name):
            if less[name].mean() > more[name].mean() + 1e-9:
                yield f"{name} gains less with {many} words than with {few}: it gets lost on this policy."


def _exact(single: Mapping[str, Tensor], most: Tensor) -> Iterator[str]:
    for name, gain in single.items():
        if (ahead := (gain > most + 1e-6)).any():
            yield f"{name} gains more than every sentence in {int(ahead.sum())} of {len(gain)} decisions."
