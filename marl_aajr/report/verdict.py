"""The verdict in plain words, computed from the comparison by fixed rules.

`headline` is the first sentence of a report, on the page and in the terminal. `how_chosen` and `how_compared`
say below it what it rests on; `verdict` is the paragraph with the figures.

Two methods count as different only where the interval of their difference excludes 0; everything else is
called not distinguishable, whichever way the means point. The same rules state a success of a regulariser and
its failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import FEW, count, epsilons, listing, size, some, with_interval
from marl_aajr.report.scores import Summaries


def headline(comparison: Comparison) -> str:
    """The first sentence of a report: the method that survives best at each ε, without figures."""
    failed = len(_failed(comparison))
    doubt = f"The evaluation failed its own checks for {failed} of {count(len(comparison.checks), 'run')}."
    if len(comparison.rows) == 1:
        sentences = [f"Only {comparison.rows[0].method.label} was evaluated, so nothing is compared."]
    else:
        sentences = [f"{_in_short(best, rest, at)}." for best, rest, at, _ in _outcomes(comparison)]
    return " ".join([doubt, *sentences] if failed else sentences)


def headline_of_scores(found: Summaries) -> str:
    """The first sentence over several environments: the method that scores highest under the largest ε.

    With the scores of the best two and of the plain method.
    """
    epsilon, summaries = max(found.items())
    best, *rest = sorted(summaries, key=lambda summary: -summary.iqm.mean)
    tied = [summary.label for summary in rest if summary.behind and not summary.behind.positive]
    where = f"under the worst attack of {size(epsilon)}" if epsilon else "without an attack"
    shown = [s for i, s in enumerate((best, *rest)) if i < 2 or s.improvement is None]
    means = "; ".join(f"{s.label} {with_interval(s.iqm, decimals=2)}" for s in shown)
    equal = f", not distinguishable from {some(tied, of=len(rest), noun='other methods')}" if tied else ""
    highest = f"{best.label} has the highest score{equal}"
    return f"Over all environments, {where}, {highest} (interquartile mean {means})."


def _in_short(best: MethodRow, rest: Sequence[MethodRow], at: Sequence[float]) -> str:
    tied = _tied(best, rest, at[0])
    where = f"At {epsilons(at)}"
    if not tied:
        return f"{where} {best.method.label} survives best"
    if len(tied) == len(rest):
        whom = "the two methods are" if len(rest) == 1 else "the methods are"
        return f"{where} {whom} not distinguishable"
    names = some([row.method.label for row in tied], of=len(rest), noun="other methods")
    return f"{where} {best.method.label} survives best, not distinguishable from {names}"


_Outcome = tuple[MethodRow, list[MethodRow], list[float], dict[float, list[MethodRow]]]
"""The best method, the rest, the sizes at which it is so, and the methods by return at each size."""


def _outcomes(comparison: Comparison) -> list[_Outcome]:
    """The outcome at each size, clear wins first; sizes with the same outcome stand together."""
    outcomes: dict[tuple[str, ...], list[float]] = defaultdict(list)
    ranked = {}
    for epsilon in comparison.epsilons:
        best, *rest = sorted(comparison.rows, key=lambda row: -row.worst_return[epsilon].mean)
        ranked[epsilon] = [best, *rest]
        tied = _tied(best, rest, epsilon)
        everybody = len(tied) == len(rest)
        names = sorted(row.method.label for row in tied)
        outcomes[() if everybody else (best.method.label, *names)].append(epsilon)
    ordered = sorted(outcomes.items(), key=lambda item: len(item[0]) or len(comparison.rows))
    return [(ranked[at[0]][0], ranked[at[0]][1:], at, ranked) for _, at in ordered]


def _tied(best: MethodRow, rest: Sequence[MethodRow], epsilon: float) -> list[MethodRow]:
    """Rows that the best does not lead beyond doubt."""
    return [row for row in rest if not best.lead(row, epsilon).positive]


def _failed(comparison: Comparison) -> list[str]:
    return [path for path, checks in comparison.checks.items() if any(c.verdict == "fail" for c in checks)]


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
    sentences = []
    if failed := _failed(comparison):
        whose = some(failed, of=len(comparison.checks), noun="runs")
        doubt = "what follows about attacks may only show that these attacks are weak"
        sentences = [f"The evaluation of {whose} failed its own checks: {doubt}."]
    sentences += _alone(comparison) if len(comparison.rows) == 1 else _leaders(comparison)
    plain = comparison.plain
    others = [row for row in comparison.rows if row is not plain]
    if plain is not None and others:
        if len(others) > 1:
            sentences.append(_against_plain(others, plain, comparison.epsilons))
        sentences += _no_success(others, plain, comparison.epsilons)
        if len(others) <= FEW:  # else the table has them
            sentences += [_price(row, plain, decimals=comparison.decimals) for row in others]
    return " ".join([*sentences, _scope(comparison)])


def _alone(comparison: Comparison) -> list[str]:
    (row,), decimals = comparison.rows, comparison.decimals
    clean = with_interval(row.clean, decimals=decimals)
    worst = row.worst_return.items()
    robust = [f"{with_interval(left, decimals=decimals)} at {epsilons([e])}" for e, left in worst]
    return [
        f"Only {row.method.label} was evaluated, so nothing is compared here.",
        f"Its return is {clean} without an attack, and under the worst of the attacks tried "
        f"{listing(robust)}.",
    ]


def _leaders(comparison: Comparison) -> list[str]:
    """One sentence per outcome."""
    sentences = []
    for best, rest, at, ranked in _outcomes(comparison):
        shown = at if len(at) <= FEW else [at[0], at[-1]]
        found = [_figures(ranked[epsilon], epsilon, decimals=comparison.decimals) for epsilon in shown]
        if len(at) > 1:
            found = [f"{text} at {epsilon:g}" for text, epsilon in zip(found, shown, strict=True)]
        sentences.append(f"{_outcome(best, rest, at)} ({'; '.join(found)}).")
    first = sentences[0]
    return [f"Under the worst of the attacks tried, {first[0].lower()}{first[1:]}", *sentences[1:]]


def _figures(ranked: Sequence[MethodRow], epsilon: float, *, decimals: int) -> str:
    """The returns of the best two, and their difference."""
    first, second = ranked[:2]
    estimates = first.worst_return[epsilon], second.worst_return[epsilon], first.lead(second, epsilon)
    one, other, lead = (with_interval(estimate, decimals=decimals) for estimate in estimates)
    return f"{first.method.label} {one} against {second.method.label} {other}, a difference of {lead}"


def _outcome(best: MethodRow, rest: Sequence[MethodRow], at: Sequence[float]) -> str:
    tied = _tied(best, rest, at[0])
    where = f"At {epsilons(at)}"
    if not tied:
        whom = "the other" if len(rest) == 1 else "every other"
        return f"{where} {best.method.label} survives best: the interval of its lead over {whom} excludes 0"
    if len(tied) < len(rest):
        whom = some([row.method.label for row in tied], of=len(rest), noun="other methods")
        return (
            f"{where} {best.method.label} has the highest mean but is not distinguishable from {whom}, "
            "while the rest lie below"
        )
    if len(rest) == 1:
        known = best.lead(rest[0], at[0]).low is not None
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


def _no_success(others: Sequence[MethodRow], plain: MethodRow, at: Sequence[float]) -> list[str]:
    if any(row.lead(plain, e).positive for row in others for e in at):
        return []
    who = f"{others[0].method.label} does not survive" if len(others) == 1 else "no other method survives"
    where = "at any ε tried" if len(at) > 1 else f"at {epsilons(at)}"
    return [f"So in this comparison {who} better than {plain.method.label} {where}."]


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
