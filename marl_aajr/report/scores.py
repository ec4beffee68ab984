"""Scores of training runs, within one environment or over several: statistics, their table and profiles.

A score is one number of one run: its clean return, or its return under its own worst attack; runs are what is
resampled, because episodes of one run say nothing of another seed. Returns of several environments have no
unit in common, so they are normalised before they are pooled. Definitions of Agarwal 2021 (arXiv 2108.13264)
and of its library rliable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from marl_aajr.core.checks import written
from marl_aajr.evaluation.intervals import LEVEL, percentile_interval
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.conditions import Task
from marl_aajr.report.estimates import NOTHING, Block, Cell, Estimate, Line, estimated, size
from marl_aajr.report.style import Look, Panel, svg

_SEED = 0
_RESAMPLES = 1000
_FEWEST = 3

Array = NDArray[np.float64]

Tasks = Sequence[ArrayLike]
"""Scores of one method: for each task, one score per run; `[..., runs]`, where there are many such sets."""


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
    """The map from returns to scores: (return − floor) / unit; the optimality gap is that to the target."""

    floor: float
    unit: float
    target: float

    def __call__(self, returns: Sequence[float]) -> Array:
        """Scores of returns."""
        return (np.asarray(returns, np.float64) - self.floor) / self.unit


@dataclass(frozen=True)
class Summary:
    """One method over its runs, and over environments: interquartile mean and optimality gap of its scores.

    Attributes:
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
            there = ", ".join(dict.fromkeys(task.environment for task in tasks))
            raise ValueError(
                f"expected a reference for an environment of the runs ({there}), got one for {name!r}"
            )


def _keys(task: Task) -> tuple[str, ...]:
    name = task.environment.partition(" ")[0]
    return f"{task.environment}, {task.team}", f"{name}, {task.team}", task.environment, name


def summarise(comparisons: Sequence[Comparison], references: Mapping[str, Reference]) -> Summaries:
    """For no attack (0) and each ε that all environments share: one summary per shared method.

    Empty where a method has fewer than three runs somewhere: what a bootstrap says of two is misleading. A
    single environment keeps its units, unless it has a reference; `reference_of` finds those.
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
    target, found = scales[0].target, {}
    for epsilon in (0.0, *shared):
        tasks = {
            label: [to(of[label].returns(epsilon)) for to, of in zip(scales, rows, strict=True)]
            for label in labels
        }
        found[epsilon] = tuple(_summary(label, tasks, baseline=baseline, target=target) for label in labels)
    return found


def _summary(label: str, tasks: Mapping[str, list[Array]], *, baseline: str | None, target: float) -> Summary:
    def lead(best: Tasks, other: Tasks) -> Array:
        return interquartile_mean(best) - interquartile_mean(other)

    own = tasks[label]
    best = max(tasks, key=lambda label: interquartile_mean(tasks[label]))
    every = np.unique(np.concatenate([scores for found in tasks.values() for scores in found]))
    air = 0.05 * (every[-1] - every[0]) or 1.0
    tau = np.concatenate([[every[0] - air], every, [every[-1] + air]])
    return Summary(
        label,
        iqm=stratified_bootstrap(interquartile_mean, own),
        gap=stratified_bootstrap(partial(optimality_gap, target=target), own),
        behind=None if label == best else stratified_bootstrap(lead, tasks[best], own),
        improvement=None
        if baseline is None or baseline == label
        else stratified_bootstrap(probability_of_improvement, own, tasks[baseline]),
        profile=(tau, performance_profile(own, tau)),
    )


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


def profiles(found: Summaries, looks: Sequence[Look], *, unit: str, key: str) -> tuple[Panel, ...]:
    """Performance profiles, the share of runs above each score: without an attack, and per ε."""

    def draw(axes: Axes, summaries: Sequence[Summary]) -> None:
        for summary, look in zip(summaries, looks, strict=True):
            axes.step(*summary.profile, where="post", color=look.colour, ls=look.dashes, linewidth=1.7)
        axes.set(xlabel=f"{unit} τ", ylabel="share of runs above", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(5))

    panels = []
    for i, (epsilon, summaries) in enumerate(found.items()):
        described = "; ".join(
            f"{s.label}: every run above {written(s.profile[0][s.profile[1] == 1.0][-1])}, none above "
            f"{written(s.profile[0][s.profile[1] == 0.0][0])}"
            for s in summaries
        )
        title = _where(epsilon)
        alt = f"Share of runs above each {unit}, {title.lower()}. {described}."
        panels.append(Panel(title, svg(partial(draw, summaries=summaries), key=f"{key}{i}"), alt))
    return tuple(panels)


def _where(epsilon: float) -> str:
    return f"Worst attack, {size(epsilon)}" if epsilon else "No attack"


def interquartile_mean(tasks: Tasks) -> Array:
    """Mean of the middle half of all scores: outliers do not move it, and it wastes less than the median.

    The lowest ⌊n/4⌋ and the highest ⌊n/4⌋ of the n pooled scores are dropped; `[..., runs]` → `[...]`.
    """
    # Not SciPy's `trim_mean`, whose checks of its arguments take most of a page's time in the bootstrap.
    pooled = np.sort(_pooled(tasks))
    cut = pooled.shape[-1] // 4
    return np.asarray(pooled[..., cut : pooled.shape[-1] - cut].mean(axis=-1))


def optimality_gap(tasks: Tasks, *, target: float) -> Array:
    """How far the scores fall short of a target: mean of max(target − score, 0). Smaller is better.

    `[..., runs]` → `[...]`.
    """
    return np.asarray(np.maximum(target - _pooled(tasks), 0.0).mean(axis=-1))


def probability_of_improvement(ours: Tasks, theirs: Tasks) -> Array:
    """P(a run of ours scores higher than one of theirs), ties counting half; the mean over tasks.

    Per task the Mann-Whitney U over the number of pairs: the share of pairs that ours wins;
    `[..., runs]` → `[...]`.
    """
    pairs = zip(_tasks(ours), _tasks(theirs), strict=True)
    signs = [np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)) for x, y in pairs]
    return np.asarray((1.0 + np.mean(signs, axis=0)) / 2.0)


def performance_profile(tasks: Tasks, thresholds: ArrayLike) -> Array:
    """Share of scores above each threshold τ, `[T]`: the run-score distribution, P(score > τ)."""
    tau = np.asarray(thresholds, dtype=np.float64)
    return np.asarray(np.mean(_pooled(tasks) > tau[:, None], axis=1))


def stratified_bootstrap(
    statistic: Callable[..., Array], *methods: Tasks, resamples: int = _RESAMPLES
) -> Estimate:
    """A statistic with its percentile bootstrap interval over runs, resampled within each task.

    Resampling within tasks (and methods) keeps the number of runs of each. With few runs the interval is too
    narrow: of nominal 95 % it covers about 74 % for 3 runs and 89 % for 10 (see `report.estimates`).

    Args:
        statistic: of one or more methods, such as `interquartile_mean` or `probability_of_improvement`; it
            gets all resamples at once, `[resamples, runs]` → `[resamples]`.
        methods: scores, as many as `statistic` takes; at least two runs in each task.
        resamples: how many; the same are drawn every time.

    Example:
        >>> stratified_bootstrap(interquartile_mean, [[3.0, 4.0, 9.0]])
    """
    split = [_tasks(method) for method in methods]
    samples = [runs for method in split for runs in method]
    ends = np.cumsum([len(method) for method in split])[:-1]

    def of(*resampled: Array, axis: int = -1) -> Array:
        """SciPy asks for the last axis, and only of a statistic that takes one for all resamples at once."""
        bounds = [0, *ends, len(resampled)]
        return statistic(*(resampled[a:b] for a, b in pairwise(bounds)))

    low, high = percentile_interval(samples, of, resamples=resamples, seed=_SEED)
    return Estimate(float(of(*samples)), low, high, (), "runs", LEVEL)


def _tasks(tasks: Tasks) -> list[Array]:
    return [np.asarray(runs, dtype=np.float64) for runs in tasks]


def _pooled(tasks: Tasks) -> Array:
    return np.concatenate(_tasks(tasks), axis=-1)
