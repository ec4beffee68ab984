"""The first sentence of a report, on the page and in the terminal: the outcome in words, by fixed rules.

Two methods count as different only where the interval of their difference excludes 0. The sentence says so as
plainly where nothing was won, nothing was learned, or no winner can be named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from marl_aajr.core.checks import grouped
from marl_aajr.report.comparison import Comparison, MethodRow
from marl_aajr.report.estimates import FEW, count, epsilons, listing, number, size, some, with_interval
from marl_aajr.report.ranking import Ranking, floor, own_side, ranked, rankings
from marl_aajr.report.scores import Summaries

_WORDS = ("no ", "on ", "over ", "the ", "under ")
_NO_WINNER = "no winner can be named, because each team was judged against its own side only"


def headline(comparison: Comparison) -> str:
    """The outcome in one environment: the method that survives attacks best, and what it costs."""
    return _sentence(_clauses(comparison))


def headline_of_all(comparisons: Sequence[Comparison], found: Summaries) -> str:
    """The outcome of a page: of each environment where they are few, else by scores if there are any."""
    if len(comparisons) == 1:
        return headline(comparisons[0])
    few = len(comparisons) <= FEW
    if found and not few:
        return headline_of_scores(found)
    told = grouped(
        ("; ".join(_clauses(each)) if few else _in_short(each), each.task.short) for each in comparisons
    )
    ordered = sorted(told.items(), key=lambda item: -len(item[1]))
    places = {
        text: listing(where) if len(where) <= FEW else f"{len(where)} of {len(comparisons)} environments"
        for text, where in ordered
    }
    return _sentence([f"on {places[text]} {text}" for text, _ in ordered])


def _clauses(comparison: Comparison) -> list[str]:
    rows = ranked(comparison)
    if own_side(comparison) and len(comparison.rows) > 1:
        return [_NO_WINNER]
    if len(rows) < 2:
        return list(_alone(comparison, rows))
    found = rankings(comparison)
    kept = [one for one in found if not one.lost]
    lost = [epsilon for one in found if one.lost for epsilon in one.at]
    sizes = epsilons(lost) if kept else "any size tried"
    nothing = [f"under attacks of {sizes} no method does better than doing nothing"] if lost else []
    plain = comparison.plain if comparison.plain in rows else None
    ahead = sorted(epsilon for one in kept if one.clear for epsilon in one.at)
    if plain is not None and not ahead and (none := no_success(rows, plain, comparison.epsilons)):
        return [none, *nothing]
    if not kept or all(one.open for one in kept):
        alike = f"the {'two ' if len(rows) == 2 else ''}methods cannot be told apart under any attack tried"
        return [alike, *nothing] if kept else nothing
    best = _never_behind(kept)
    named = [row for row in best if any(_leads(row, rows, e) for one in kept for e in one.at)]
    if not named:
        each = list({one.best.method.label: one.best for one in kept}.values())
        return [_at_each_size(kept), *nothing, *_judges(comparison), *_doubt(comparison, each)]
    if unsure := [row for row in best if row not in named]:
        clauses = list(_unsure(named, unsure, kept))
    else:
        clauses = [_best(named, ahead, every=len(ahead) == len(comparison.epsilons))]
    if plain is not None and plain not in named:
        clauses += _price(named, plain, decimals=comparison.decimals)
    return [*clauses, *nothing, *_judges(comparison), *_doubt(comparison, named)]


def _leads(row: MethodRow, rows: Sequence[MethodRow], epsilon: float) -> bool:
    return any(row.lead(other, epsilon).positive for other in rows if other is not row)


def _unsure(
    named: Sequence[MethodRow], unsure: Sequence[MethodRow], found: Sequence[Ranking]
) -> Iterator[str]:
    """The methods that lead somebody, beside those that lead nobody and that nobody leads."""
    ahead, beside = (listing([_name(row) for row in rows]) for rows in (named, unsure))
    at = sorted(epsilon for one in found if not one.open for epsilon in one.at)
    verb = "survive" if len(named) > 1 else "survives"
    yield f"{ahead} {verb} attacks of {epsilons(at)} best, but cannot be told apart from {beside}"
    if alike := sorted(epsilon for one in found if one.open for epsilon in one.at):
        yield f"at {epsilons(alike)} no methods can be told apart"


def _in_short(comparison: Comparison) -> str:
    """The outcome of one of many environments."""
    if own_side(comparison):
        return _NO_WINNER
    kept = [one for one in rankings(comparison) if not one.lost]
    if all(one.open for one in kept):
        return "no method stands out"
    best = _never_behind(kept)
    return _best(best) if best else "it depends on the size of the attack"


def _never_behind(found: Sequence[Ranking]) -> list[MethodRow]:
    """The methods that no other leads beyond doubt at any size, the first of the first ranking first."""
    alike = [[one.best, *one.tied] for one in found]
    return [row for row in alike[0] if all(row in rows for rows in alike)] if found else []


def _best(best: Sequence[MethodRow], ahead: Sequence[float] | None = None, *, every: bool = False) -> str:
    """One method that is never behind, and where it is ahead of all; or several that cannot be told apart.

    Where it is ahead is left out if `ahead` is None.
    """
    names = [_name(row) for row in best]
    if len(names) > 1:
        who = listing(names) if len(names) <= FEW else f"{len(names)} methods"
        return f"{who} survive attacks best, and cannot be told apart"
    if ahead is None:
        return f"{names[0]} survives attacks best"
    if every:
        return f"{names[0]} survives attacks{' of every size tried' if len(ahead) > 1 else ''} best"
    where = "behind at no size, ahead of all at none"
    if ahead:
        where = f"ahead of all others at {epsilons(ahead)}, behind at no size"
    return f"{names[0]} survives attacks best: {where}"


def _at_each_size(found: Sequence[Ranking]) -> str:
    return ", ".join(
        f"under attacks of {epsilons(one.at)} {_outcome(one)}"
        for one in sorted(found, key=lambda one: one.at)
    )


def _name(row: MethodRow) -> str:
    """Its label, without the name that plain PPO has in a configuration."""
    return row.method.label.removeprefix("none (").removesuffix(")") if row.method.plain else row.method.label


def headline_of_scores(found: Summaries) -> str:
    """The method that scores highest over several environments under the largest ε.

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


def _sentence(clauses: Sequence[str]) -> str:
    """The clauses as a sentence; names of methods keep their small letters."""
    text = "; ".join(clauses)
    return f"{text[0].upper() if text.startswith(_WORDS) else text[0]}{text[1:]}."


def _alone(comparison: Comparison, rows: Sequence[MethodRow]) -> Iterator[str]:
    """The returns of the only method, or that there is none to speak of."""
    if not rows and not own_side(comparison):
        alone = len(comparison.rows) == 1
        who = f"{comparison.rows[0].method.label} has not" if alone else "no method has"
        where = " against the same opponents" if comparison.pool else ""
        yield f"{who} learned anything: a team that does nothing returns as much{where}"
        return
    (row,) = rows or comparison.rows
    last = comparison.epsilons[-1]
    clean, left = (number(e.mean, decimals=comparison.decimals) for e in (row.clean, row.worst_return[last]))
    label, under = row.method.label, f"under the worst attack of {size(last)}"
    yield f"{label} returns {clean} without an attack and {left} {under}"
    yield from _judges(comparison)
    if control := floor(row.runs[0]):
        yield f"{control.doing} returns {number(control.outcome.mean, decimals=comparison.decimals)}"
    others = len(comparison.rows) > 1
    yield "no other method has learned anything" if others else "nothing was compared with it"
    yield from _doubt(comparison, [row])


def _outcome(one: Ranking) -> str:
    if one.lost:
        return "no method does better than doing nothing"
    if one.open:
        return "the methods cannot be told apart"
    names = [_name(row) for row in (one.best, *one.tied)]
    if len(names) > FEW:
        return f"{names[0]} has the highest return, but cannot be told apart from {len(names) - 1} others"
    return f"{listing(names)} survive{'' if one.tied else 's'} best"


def no_success(rows: Sequence[MethodRow], plain: MethodRow, at: Sequence[float]) -> str:
    """That no method survives better than the plain one at any of these sizes; empty where one does."""
    others = [row for row in rows if row is not plain]
    if any(row.lead(plain, epsilon).positive for row in others for epsilon in at):
        return ""
    who = f"{_name(others[0])} does not survive" if len(others) == 1 else "no method survives"
    sizes = "any size tried" if len(at) > 1 else epsilons(at)
    return f"{who} attacks of {sizes} better than {_name(plain)}"


def _price(best: Sequence[MethodRow], plain: MethodRow, *, decimals: int) -> Iterator[str]:
    """What the best methods cost without an attack, where that is known."""
    prices = [row.price for row in best if row.price is not None and row.price.low is not None]
    if len(prices) < len(best):
        return
    who, amounts = "it" if len(best) == 1 else "they", sorted({abs(price.mean) for price in prices})
    told = " to ".join(number(amount, decimals=decimals) for amount in (amounts[0], *amounts[1:][-1:]))
    verb = f"{who} return{'s' if len(best) == 1 else ''}"
    if all(price.positive for price in prices):
        yield f"without an attack {verb} {told} less than {_name(plain)}"
    elif all(price.negative for price in prices):
        yield f"without an attack {verb} {told} more than {_name(plain)}"
    elif not any(price.positive or price.negative for price in prices):
        yield f"without an attack {who} cannot be told apart from {_name(plain)}"
    else:
        yield f"not all of them return as much as {_name(plain)} without an attack"


def _judges(comparison: Comparison) -> Iterator[str]:
    if comparison.pool:
        yield f"judged against {count(len(comparison.pool), 'opponent')} that every team met"


def _doubt(comparison: Comparison, rows: Sequence[MethodRow]) -> Iterator[str]:
    """That the evaluation of a method that is named failed its own checks."""
    failed = {path for path, checks in comparison.checks.items() if any(c.verdict == "fail" for c in checks)}
    labels = {row.method.label: None for row in rows if {str(run.run.path) for run in row.runs} & failed}
    if labels:
        yield f"but the evaluation of {listing(list(labels))} failed its own checks"
