"""Scores of training runs, within one environment or over several: statistics, their table and profiles.

A score is one number of one run: its clean return, or its return under its own worst attack. Returns of
several environments have no unit in common, so they are normalised before they are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from marl_aajr.evaluation.outcomes import LEVEL
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.conditions import Task
from marl_aajr.report.estimates import (
    NOTHING,
    Block,
    Cell,
    Estimate,
    Line,
    estimated,
    size,
    some,
    with_interval,
)
from marl_aajr.report.statistics import (
    Tasks,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from marl_aajr.report.style import Look, Panel, svg

_SEED = 0
_RESAMPLES = 1000
_FEWEST = 3
_SHOWN = 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Two returns of an environment, fixed before the study: a score runs from 0 to 1 between them.

    Attributes:
        floor: what every method should reach, such as the return of a random policy.
        target: what a good one reaches without an attack.
    """

    floor: float
    target: float

    def __post_init__(self) -> None:
        if not self.floor < self.target:
            raise ValueError(f"expected a floor below the target, got {self.floor:g} and {self.target:g}")


@dataclass(frozen=True)
class Scale:
    """The map from returns to scores: (return − floor) / unit.

    Attributes:
        floor: the return that becomes 0.
        unit: the difference that becomes 1.
        target: the score that the optimality gap is measured from.
    """

    floor: float
    unit: float
    target: float

    def __call__(self, returns: Sequence[float]) -> Array:
        """Scores of returns."""
        return (np.asarray(returns, np.float64) - self.floor) / self.unit


@dataclass(frozen=True)
class Summary:
    """One method over its runs, and over environments.

    Attributes:
        label: of the method.
        iqm: interquartile mean of the scores.
        gap: mean of what the scores fall short of the target.
        behind: interquartile mean of the best method − this one's; None for the best itself.
        improvement: probability that a run scores above one of the plain method; None for that itself.
        profile: thresholds, and the share of runs above each.
    """

    label: str
    iqm: Estimate
    gap: Estimate
    behind: Estimate | None
    improvement: Estimate | None
    profile: tuple[Array, Array]


Summaries = Mapping[float, Sequence[Summary]]
"""For no attack (0) and each ε: one summary per method, always in the same order."""


def scale(comparison: Comparison, reference: Reference | None, *, normalised: bool) -> Scale:
    """The scale of one environment.

    Without a reference the target is the plain method's clean return (the highest of all methods' where there
    is none), and the floor the lowest return of any run.
    """
    if reference is not None:
        return Scale(reference.floor, reference.target - reference.floor, 1.0)
    plain = comparison.plain
    target = max(row.clean.mean for row in comparison.rows) if plain is None else plain.clean.mean
    if not normalised:
        return Scale(0.0, 1.0, target)
    floor = min(min(row.returns(e)) for row in comparison.rows for e in (0.0, *comparison.epsilons))
    return Scale(floor, target - floor or 1.0, 1.0)


def reference_of(references: Mapping[str, Reference], task: Task) -> Reference | None:
    """The reference of a task: by environment and side, by environment with its arguments, or by name."""
    return next((references[key] for key in _keys(task) if key in references), None)


def check_references(references: Mapping[str, Reference], tasks: Sequence[Task]) -> None:
    """Raise `ValueError` where a reference is for no task: it was meant for one, and is misspelt."""
    known = {key for task in tasks for key in _keys(task)}
    for name in references:
        if name not in known:
            raise ValueError(
                f"expected a reference for an environment of the runs "
                f"({', '.join(dict.fromkeys(task.environment for task in tasks))}), got one for {name!r}"
            )


def _keys(task: Task) -> tuple[str, ...]:
    name = task.environment.partition(" ")[0]
    return f"{task.environment}, {task.team}", f"{name}, {task.team}", task.environment, name


def summarise(comparisons: Sequence[Comparison], references: Mapping[str, Reference]) -> Summaries:
    """For no attack (0) and each ε that all environments share: one summary per shared method.

    Empty where a method has fewer than three runs somewhere: what a bootstrap says of two is misleading.

    Args:
        comparisons: one per environment; a single one keeps its units, unless it has a reference.
        references: by environment, as `reference_of` finds them.
    """
    rows = [{row.method.label: row for row in comparison.rows} for comparison in comparisons]
    labels = [label for label in rows[0] if all(label in found for found in rows)]
    if not labels or min(len(found[label].runs) for found in rows for label in labels) < _FEWEST:
        return {}
    scales = [
        scale(c, reference_of(references, c.task), normalised=len(comparisons) > 1) for c in comparisons
    ]
    plain = {c.plain.method.label if c.plain else None for c in comparisons}
    baseline = plain.pop() if len(plain) == 1 else None
    shared = [e for e in comparisons[0].epsilons if all(e in c.epsilons for c in comparisons)]
    found: dict[float, tuple[Summary, ...]] = {}
    for epsilon in (0.0, *shared):
        tasks = {
            label: [to(of[label].returns(epsilon)) for to, of in zip(scales, rows, strict=True)]
            for label in labels
        }
        found[epsilon] = tuple(
            _summary(label, tasks, baseline=baseline, target=scales[0].target) for label in labels
        )
    return found


def _summary(label: str, tasks: Mapping[str, list[Array]], *, baseline: str | None, target: float) -> Summary:
    def estimate(statistic: Callable[..., float], *methods: list[Array]) -> Estimate:
        generator = np.random.default_rng(_SEED)
        value, low, high = stratified_bootstrap(
            statistic, *methods, generator=generator, resamples=_RESAMPLES
        )
        return Estimate(value, low, high, (), "runs", LEVEL)

    own = tasks[label]
    best = max(tasks, key=lambda label: interquartile_mean(tasks[label]))
    every = np.unique(np.concatenate([scores for found in tasks.values() for scores in found]))
    air = 0.05 * (every[-1] - every[0]) or 1.0
    tau = np.concatenate([[every[0] - air], every, [every[-1] + air]])
    is_baseline = baseline in (None, label)
    return Summary(
        label,
        iqm=estimate(interquartile_mean, own),
        gap=estimate(partial(optimality_gap, target=target), own),
        behind=None if label == best else estimate(_lead, tasks[best], own),
        improvement=None if is_baseline else estimate(probability_of_improvement, own, tasks[str(baseline)]),
        profile=(tau, performance_profile(own, tau)),
    )


def _lead(best: Tasks, other: Tasks) -> float:
    return interquartile_mean(best) - interquartile_mean(other)


def score_table(found: Summaries, *, decimals: int) -> tuple[Block, ...]:
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


def headline_of_scores(found: Summaries) -> str:
    """The method with the highest score over all environments, under the worst attack of the largest size.

    One sentence, with the scores of the best two and of the plain method.
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
    """Performance profiles, the share of runs above each score: without an attack, and per ε."""
    drawn = []
    for i, (epsilon, summaries) in enumerate(found.items()):
        drawing = _profile([s.profile for s in summaries], looks, xlabel=f"{unit} τ", key=f"{key}{i}")
        described = "; ".join(
            f"{s.label}: every run above {s.profile[0][s.profile[1] == 1.0][-1]:.3g}, none above "
            f"{s.profile[0][s.profile[1] == 0.0][0]:.3g}"
            for s in summaries
        )
        title = _where(epsilon)
        alt = f"Share of runs above each {unit}, {title.lower()}. {described}."
        drawn.append(Panel(title, drawing, alt))
    return tuple(drawn)


def _profile(found: Sequence[tuple[Array, Array]], looks: Sequence[Look], *, xlabel: str, key: str) -> Markup:
    def draw(axes: Axes) -> None:
        for (tau, share), look in zip(found, looks, strict=True):
            axes.step(tau, share, where="post", color=look.colour, ls=look.dashes, linewidth=1.7)
        axes.set(xlabel=xlabel, ylabel="share of runs above", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, key=key)


def _where(epsilon: float) -> str:
    return f"Worst attack, {size(epsilon)}" if epsilon else "No attack"
