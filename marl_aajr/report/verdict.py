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
from marl_aajr.report.estimates import count, epsilons, listing, some, with_interval

_FEW = 3


def headline(comparison: Comparison) -> str:
    """The first sentence of a report: the method that survives best at each ε, without figures."""
    failed = len(_failed(comparison))
    doubt = f"The evaluation failed its own checks for {failed} of {count(len(comparison.checks), 'run')}."
    if len(comparison.rows) == 1:
        sentences = [f"Only {comparison.rows[0].method.label} was evaluated, so nothing is compared."]
    else:
        sentences = [f"{_in_short(best, rest, at)}." for best, rest, at, _ in _outcomes(comparison)]
    return " ".join([doubt, *sentences] if failed else sentences)


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
    ranked = {e: _ranked(comparison, e) for e in comparison.epsilons}
    for epsilon, (best, *rest) in ranked.items():
        tied = _tied(best, rest, epsilon)
        everybody = len(tied) == len(rest)
        names = sorted(row.method.label for row in tied)
        outcomes[() if everybody else (best.method.label, *names)].append(epsilon)
    ordered = sorted(outcomes.items(), key=lambda item: len(item[0]) or len(comparison.rows))
    return [(ranked[at[0]][0], ranked[at[0]][1:], at, ranked) for _, at in ordered]


def _ranked(comparison: Comparison, epsilon: float) -> list[MethodRow]:
    return sorted(comparison.rows, key=lambda row: -row.worst_return[epsilon].mean)


def _tied(best: MethodRow, rest: Sequence[MethodRow], epsilon: float) -> list[MethodRow]:
    """Rows that the best does not lead beyond doubt."""
    return [row for row in rest if not best.lead(row, epsilon).positive]


def _failed(comparison: Comparison) -> list[str]:
    return [path for path, checks in comparison.checks.items() if any(c.verdict == "fail" for c in checks)]


def how_chosen(comparison: Comparison) -> str:
    """One sentence: the rule by which these evaluations call an attack the worst of its size."""
    if len(comparison.attacks) == 1:
        return f"Worst: the only attack tried, {comparison.attacks[0]}."
    numbers = sorted(
        {e.selection_episodes for row in comparison.rows for run in row.runs for _, e in run.played}
    )
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


def verdict(comparison: Comparison, *, decimals: int) -> str:
    """One paragraph: the best method at each ε, all against the plain one, the prices of robustness."""
    plain = comparison.plain
    doubts = _doubts(comparison)
    if len(comparison.rows) == 1:
        return " ".join([*doubts, *_alone(comparison, decimals=decimals), _scope(comparison)])
    sentences = doubts + _leaders(comparison, decimals=decimals)
    if plain is not None:
        others = [row for row in comparison.rows if row is not plain]
        if len(others) > 1:
            sentences += _against_plain(others, plain, comparison.epsilons)
        sentences += _no_success(others, plain, comparison.epsilons)
        sentences += _prices(others, plain, decimals=decimals)
    return " ".join([*sentences, _scope(comparison)])


def _doubts(comparison: Comparison) -> list[str]:
    failed = _failed(comparison)
    if not failed:
        return []
    return [
        f"The evaluation of {some(failed, of=len(comparison.checks), noun='runs')} failed its own checks: "
        "what follows about attacks may only show that these attacks are weak."
    ]


def _alone(comparison: Comparison, *, decimals: int) -> list[str]:
    (row,) = comparison.rows
    robust = listing(
        [
            f"{with_interval(row.worst_return[epsilon], decimals=decimals)} at {epsilons([epsilon])}"
            for epsilon in comparison.epsilons
        ]
    )
    return [
        f"Only {row.method.label} was evaluated, so nothing is compared here.",
        f"Its return is {with_interval(row.clean, decimals=decimals)} without an attack, and under "
        f"the worst of the attacks tried {robust}.",
    ]


def _leaders(comparison: Comparison, *, decimals: int) -> list[str]:
    """One sentence per outcome."""
    sentences = []
    for best, rest, at, ranked in _outcomes(comparison):
        shown = at if len(at) <= _FEW else [at[0], at[-1]]
        figures = "; ".join(
            _figures(ranked[epsilon][:2], epsilon, many=len(at) > 1, decimals=decimals) for epsilon in shown
        )
        sentences.append(f"{_outcome(best, rest, at)} ({figures}).")
    first = sentences[0]
    return [f"Under the worst of the attacks tried, {first[0].lower()}{first[1:]}", *sentences[1:]]


def _figures(rows: Sequence[MethodRow], epsilon: float, *, many: bool, decimals: int) -> str:
    returns = " against ".join(
        f"{row.method.label} {with_interval(row.worst_return[epsilon], decimals=decimals)}" for row in rows
    )
    best, second = rows
    text = f"{returns}, a difference of {with_interval(best.lead(second, epsilon), decimals=decimals)}"
    return f"{text} at {epsilon:g}" if many else text


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


def _against_plain(others: Sequence[MethodRow], plain: MethodRow, at: Sequence[float]) -> list[str]:
    """One sentence for all methods that fare alike."""
    alike = defaultdict(list)
    for row in others:
        alike[_fare(row, plain, at)].append(row.method.label)
    parts = [
        f"{listing(labels)} {'is' if len(labels) == 1 else 'are'} {fare}" for fare, labels in alike.items()
    ]
    return [f"Against {plain.method.label}: {'; '.join(parts)}."]


def _fare(row: MethodRow, plain: MethodRow, at: Sequence[float]) -> str:
    better = [e for e in at if row.lead(plain, e).positive]
    worse = [e for e in at if plain.lead(row, e).positive]
    same = [e for e in at if e not in better and e not in worse]
    found = (("better", better), ("worse", worse), ("not distinguishable", same))
    return listing([f"{word} at {epsilons(where)}" for word, where in found if where])


def _no_success(others: Sequence[MethodRow], plain: MethodRow, at: Sequence[float]) -> list[str]:
    if any(row.lead(plain, e).positive for row in others for e in at):
        return []
    who = f"{others[0].method.label} does not survive" if len(others) == 1 else "no other method survives"
    where = "at any ε tried" if len(at) > 1 else f"at {epsilons(at)}"
    return [f"So in this comparison {who} better than {plain.method.label} {where}."]


def _prices(others: Sequence[MethodRow], plain: MethodRow, *, decimals: int) -> list[str]:
    """The price of each method; many are left to the table."""
    if len(others) > _FEW:
        return []
    return [_price(row, plain, decimals=decimals) for row in others]


def _price(row: MethodRow, plain: MethodRow, *, decimals: int) -> str:
    price = row.price
    assert price is not None
    lead = f"The price of robustness of {row.method.label} is {with_interval(price, decimals=decimals)}"
    if price.low is None or price.high is None:
        return f"{lead}, and no interval can be given for it."
    if price.low > 0:
        return f"{lead}: without an attack it returns less than {plain.method.label}."
    if price.high < 0:
        return f"{lead}: without an attack it returns more than {plain.method.label}."
    return f"{lead}, an interval that includes 0."


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
