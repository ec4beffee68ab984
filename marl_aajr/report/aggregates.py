"""Tables and pictures of the statistics over runs, within one environment or over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marl_aajr.report import figures
from marl_aajr.report.cells import NOTHING, Block, Cell, Line, estimated, size
from marl_aajr.report.palette import Look
from marl_aajr.report.panels import Panel
from marl_aajr.report.scores import Summary
from marl_aajr.report.statistics import Estimate
from marl_aajr.report.wording import some, with_interval

_SHOWN = 2

Summaries = Mapping[float, Sequence[Summary]]
"""For no attack (0) and each ε: one summary per method, always in the same order."""


def blocks(found: Summaries, *, decimals: int) -> tuple[Block, ...]:
    """Interquartile mean, optimality gap and probability of improvement, without and under attack."""

    def cell(estimate: Estimate | None, digits: int) -> Cell:
        return NOTHING if estimate is None else estimated(estimate, decimals=digits)

    def lines(summaries: Sequence[Summary]) -> tuple[Line, ...]:
        improvement = Line("P(better than plain)", tuple(cell(s.improvement, 2) for s in summaries))
        return (
            Line("interquartile mean", tuple(cell(s.iqm, decimals) for s in summaries)),
            Line("optimality gap", tuple(cell(s.gap, decimals) for s in summaries)),
            *((improvement,) if any(s.improvement for s in summaries) else ()),
        )

    return tuple(Block(_where(epsilon), lines(summaries)) for epsilon, summaries in found.items())


def headline(found: Summaries) -> str:
    """Who scores highest over all environments under the worst attack of the largest size, in a sentence.

    With the scores of the best two, and of the plain method.
    """
    epsilon, summaries = max(found.items())
    best, *rest = sorted(summaries, key=lambda summary: -summary.iqm.mean)
    tied = [summary.label for summary in rest if summary.behind and not summary.behind.positive]
    where = f"under the worst attack of {size(epsilon)}" if epsilon else "without an attack"
    shown = [s for i, s in enumerate((best, *rest)) if i < _SHOWN or s.improvement is None]
    means = "; ".join(f"{s.label} {with_interval(s.iqm, decimals=2)}" for s in shown)
    equal = f", not distinguishable from {some(tied, of=len(rest), noun='other methods')}" if tied else ""
    highest = f"{best.label} has the highest score{equal}"
    return f"Over all environments, {where}, {highest} (interquartile mean {means})."


def profiles(found: Summaries, looks: Sequence[Look], *, unit: str, key: str) -> tuple[Panel, ...]:
    """One performance profile without an attack, and one per ε."""
    drawn = []
    for i, (epsilon, summaries) in enumerate(found.items()):
        svg = figures.profile_panel(
            [s.profile for s in summaries], looks, xlabel=f"{unit} τ", key=f"{key}{i}"
        )
        described = "; ".join(
            f"{s.label}: every run above {s.profile[0][s.profile[1] == 1.0][-1]:.3g}, none above "
            f"{s.profile[0][s.profile[1] == 0.0][0]:.3g}"
            for s in summaries
        )
        title = _where(epsilon)
        drawn.append(Panel(title, svg, f"Share of runs above each {unit}, {title.lower()}. {described}."))
    return tuple(drawn)


def _where(epsilon: float) -> str:
    return f"Worst attack, {size(epsilon)}" if epsilon else "No attack"
