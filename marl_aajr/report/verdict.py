"""The verdict as a paragraph with figures, and what it rests on; its first sentence is `headline`'s.

Two methods count as different only where the interval of their difference excludes 0; everything else is
called not distinguishable, whichever way the means point. The same rules state a success of a regulariser and
its failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import FEW, count, epsilons, listing, some, with_interval
from marl_aajr.report.headline import no_success
from marl_aajr.report.ranking import Ranking, nothing_learned, own_side, ranked, rankings


def how_chosen(comparison: Comparison) -> str:
    """One sentence: the rule by which these evaluations call an attack the worst of its size."""
    if len(comparison.attacks) == 1:
        return f"Worst: the only attack tried, {comparison.attacks[0]}."
    numbers = sorted({e.selection_episodes for run in comparison.runs for _, e in run.played})
    others = f"{numbers[0]} other" if len(numbers) == 1 else "other"
    elsewhere = f"chosen by its return on {others} episodes than those it is reported on"
    here = "the one with the lowest return on the very episodes that it is reported on"
    if comparison.chosen_elsewhere:
        return f"Worst: of each run its own, {elsewhere}."
    if comparison.chosen_here:
        return f"Worst: of each run its own, {here}."
    return f"Worst: of each run its own; for some {elsewhere}, for the rest {here}."


def how_compared(comparison: Comparison) -> str:
    """One sentence: the interval of their difference that tells two methods apart, and its limits."""
    counts = {len(row.runs) for row in comparison.rows}
    if counts == {1}:
        return (
            f"Compared by the interval of the difference over the same {comparison.protocol.episodes} "
            "episodes, pair by pair. There is one run per method: another training seed may not agree."
        )
    if 1 not in counts:
        return "Compared by the interval of the difference over training runs, Welch's t."
    return (
        "Compared by the interval of the difference: over training runs (Welch's t) where both methods have "
        "several, pair by pair over the same episodes where both have one, which says nothing of another "
        "training seed. Between one run and several there is no such interval."
    )


def verdict(comparison: Comparison) -> str:
    """One paragraph: the best method at each ε, all against the plain one, the prices of robustness."""
    return " ".join(verdict_sentences(comparison))


def verdict_sentences(comparison: Comparison) -> list[str]:
    """Its sentences."""
    rows = ranked(comparison)
    sentences = nothing_learned([comparison])
    if own_side(comparison):
        sentences.append(
            "Each team was judged against the other side of its own training only, so no winner is named."
        )
    elif len(rows) < 2:
        sentences.append("There is nothing to compare here.")
    if len(comparison.rows) == 1:
        sentences += _alone(comparison)
    sentences += [_leader(comparison, one) for one in rankings(comparison)]
    plain = comparison.plain if comparison.plain in rows else None
    others = [row for row in rows if row is not plain]
    if plain is not None and others:
        if len(others) > 1:
            sentences.append(_against_plain(others, plain, comparison.epsilons))
        if none := no_success(rows, plain, comparison.epsilons):
            sentences.append(f"So in this comparison {none}.")
        if len(others) <= FEW:  # else the table has them
            sentences += [_price(row, plain, decimals=comparison.decimals) for row in others]
    return [*sentences, _scope(comparison)]


def _alone(comparison: Comparison) -> list[str]:
    (row,), decimals = comparison.rows, comparison.decimals
    clean = with_interval(row.clean, decimals=decimals)
    worst = row.worst_return.items()
    robust = [f"{with_interval(left, decimals=decimals)} at {epsilons([e])}" for e, left in worst]
    return [
        f"The return of {row.method.label} is {clean} without an attack, and under the worst of the attacks "
        f"tried {listing(robust)}."
    ]


def _leader(comparison: Comparison, one: Ranking) -> str:
    """The outcome with its figures."""
    shown = one.at if len(one.at) <= FEW else (one.at[0], one.at[-1])
    found = [_figures(comparison, epsilon) for epsilon in shown]
    if len(one.at) > 1:
        found = [f"{text} at {epsilon:g}" for text, epsilon in zip(found, shown, strict=True)]
    return f"{_outcome(one)} ({'; '.join(found)})."


def _figures(comparison: Comparison, epsilon: float) -> str:
    """The returns of the best two, and their difference."""
    first, second = sorted(ranked(comparison), key=lambda row: -row.worst_return[epsilon].mean)[:2]
    estimates = first.worst_return[epsilon], second.worst_return[epsilon], first.lead(second, epsilon)
    one, other, lead = (with_interval(estimate, decimals=comparison.decimals) for estimate in estimates)
    return f"{first.method.label} {one} against {second.method.label} {other}, a difference of {lead}"


def _outcome(one: Ranking) -> str:
    best, where = one.best.method.label, f"Under the worst attacks of {epsilons(one.at)}"
    if one.lost:
        return f"{where} no method keeps more than doing nothing returns"
    if one.clear:
        whom = "the other" if len(one.rest) == 1 else "every other"
        return f"{where} {best} survives best: the interval of its lead over {whom} excludes 0"
    if not one.open:
        whom = some([row.method.label for row in one.tied], of=len(one.rest), noun="other methods")
        return (
            f"{where} {best} has the highest mean but is not distinguishable from {whom}, "
            "while the rest lie below"
        )
    if len(one.rest) == 1:
        known = one.best.lead(one.rest[0], one.at[0]).low is not None
        why = "the interval of their difference includes 0" if known else "their difference has no interval"
        return f"{where} the two methods are not distinguishable: {why}"
    return f"{where} the highest mean is not distinguishable from any other"


def _against_plain(others: Sequence[MethodRow], plain: MethodRow, at: Sequence[float]) -> str:
    """One sentence for all methods, those that fare alike together."""
    alike = defaultdict(list)
    for row in others:
        better = [e for e in at if row.lead(plain, e).positive]
        worse = [e for e in at if plain.lead(row, e).positive]
        same = [e for e in at if e not in better and e not in worse]
        found = (("better", better), ("worse", worse), ("not distinguishable", same))
        fare = listing([f"{word} at {epsilons(where)}" for word, where in found if where])
        alike[fare].append(row.method.label)
    parts = [
        f"{listing(labels)} {'is' if len(labels) == 1 else 'are'} {fare}" for fare, labels in alike.items()
    ]
    return f"Against {plain.method.label}: {'; '.join(parts)}."


def _price(row: MethodRow, plain: MethodRow, *, decimals: int) -> str:
    price = row.price
    assert price is not None
    lead = f"The price of robustness of {row.method.label} is {with_interval(price, decimals=decimals)}"
    if price.low is None or price.high is None:
        return f"{lead}, and no interval can be given for it."
    if price.low <= 0 <= price.high:
        return f"{lead}, an interval that includes 0."
    word = "less" if price.positive else "more"
    return f"{lead}: without an attack it returns {word} than {plain.method.label}."


def _scope(comparison: Comparison) -> str:
    counts = {len(row.runs) for row in comparison.rows}
    if counts == {1}:
        return (
            f"All of this is about one run per method: the intervals are over "
            f"{count(comparison.protocol.episodes, 'episode')}, those of differences over pairs of the same "
            "episode, and whether another training seed would agree is unknown."
        )
    if 1 in counts:
        return (
            "Some methods have one run only: their intervals are over episodes and do not cover the "
            "difference between training seeds, which is what matters; none of them can be told from a "
            "method with several."
        )
    runs = " or ".join(str(n) for n in sorted(counts))
    return f"Intervals are over {runs} training runs (seeds) per method, those of differences by Welch's t."
