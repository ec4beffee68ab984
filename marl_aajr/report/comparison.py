"""The comparison as numbers: one row per method, with an interval on everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.result import Check
from marl_aajr.evaluation.statistics import area_under_curve
from marl_aajr.report.conditions import Condition, unlimited
from marl_aajr.report.estimates import Estimate, over_episodes, over_runs
from marl_aajr.report.methods import Method, group
from marl_aajr.report.omissions import Omission
from marl_aajr.report.protocol import Evidence, Protocol, Results, gather
from marl_aajr.report.records import RunRecord
from marl_aajr.report.scenes import Scene, scenes


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: the method and its runs.
        clean: return without an attack.
        robust: return under each attack and size.
        worst: ε -> the attack of that size that is the worst for most of its runs.
        strongest: ε -> return under the worst attack of that size: of each run under its own, then over runs.
        area: mean over ε from 0 to the largest of the return under the worst attack, by trapezoids.
        price: clean return of the plain method − clean return of this one; None for the plain
            method itself and where there is no plain one.
        runs: the evaluations that the row is made of, by seed.
        others: the row for other kinds of actions, by kind; only kinds that every run of every method has.
    """

    method: Method
    clean: Estimate
    robust: Mapping[Condition, Estimate]
    worst: Mapping[float, Condition]
    strongest: Mapping[float, Estimate]
    area: Estimate
    price: Estimate | None
    runs: tuple[Results, ...]
    others: Mapping[str, Row] = field(default_factory=dict)

    def worst_return(self, epsilon: float) -> Estimate:
        """Return under the attack of this size that hurts the method most."""
        return self.strongest[epsilon]

    def lead(self, other: Row, epsilon: float) -> Estimate:
        """Return under the worst attack of a size − that of another method, each under its own."""
        return self.worst_return(epsilon).minus(other.worst_return(epsilon))

    def median_run(self, epsilon: float) -> Results:
        """The training run whose return under its own strongest attack of this size is the median.

        Of an even number of runs, the lower of the two in the middle.
        """
        ordered = sorted(self.runs, key=lambda run: run.strongest(epsilon).mean)
        return ordered[(len(ordered) - 1) // 2]

    def median_return(self, epsilon: float) -> Estimate:
        """Return of the median training run under its strongest attack, with the interval over episodes."""
        return estimate_of([self.median_run(epsilon).strongest(epsilon)], level=self.clean.level)


@dataclass(frozen=True)
class Comparison:
    """Methods that were evaluated in the same way.

    Attributes:
        rows: the plain method first.
        protocol: environment, episodes, seed, actions and level of all evaluations.
        conditions: attacks and sizes that all runs faced.
        left_out: what only some runs were evaluated on.
    """

    rows: tuple[Row, ...]
    protocol: Protocol
    conditions: tuple[Condition, ...]
    left_out: tuple[Omission, ...]

    @property
    def scene(self) -> Scene:
        """The environment, and the side whose return is compared."""
        return Scene(self.protocol.environment, self.protocol.team)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Sizes at which every method faced the same attacks, in rising order."""
        return tuple(sorted({condition.epsilon for condition in unlimited(self.conditions)}))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Labels of the attacks, in the order of the evaluations."""
        return tuple(dict.fromkeys(condition.attack for condition in self.conditions))

    @property
    def checks(self) -> dict[str, tuple[Check, ...]]:
        """By path: what each run's shown evaluations found against themselves."""
        return {
            str(run.run.path): tuple(
                check
                for evaluation in run.run.evaluations.values()
                if Protocol.of(evaluation) == self.protocol
                for check in evaluation.checks
            )
            for row in self.rows
            for run in row.runs
        }

    @property
    def chosen_elsewhere(self) -> bool:
        """Whether every worst attack was chosen on other episodes than it is reported on."""
        return all(set(self.epsilons) <= set(run.chosen) for row in self.rows for run in row.runs)

    @property
    def chosen_here(self) -> bool:
        """Whether no worst attack was chosen on other episodes."""
        return not any(run.chosen for row in self.rows for run in row.runs)

    @property
    def plain(self) -> Row | None:
        """The row that prices are measured from, where there is exactly one candidate."""
        plain = [row for row in self.rows if row.method.plain]
        return plain[0] if len(plain) == 1 else None


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Compare the methods that the runs belong to.

    With at least two runs of a method its intervals are over runs (training seeds), by
    Student's t. With one run they are over episodes, as its evaluation recorded them, and say
    nothing about another seed.

    Args:
        records: finished, evaluated runs, in any order.

    Raises:
        ValueError: no runs, one seed of a method given twice, or runs evaluated on different
            environments, episodes, seeds or attacks.
    """
    if not records:
        raise ValueError("expected at least one run, got none; name the run directories")
    methods = group(records)
    evidence = gather([run for method in methods for run in method.runs])
    level = evidence.protocol.level
    results = _per_method(methods, evidence)
    plain = [runs for method, runs in zip(methods, results, strict=True) if method.plain]
    baseline = estimate_of([r.clean for r in plain[0]], level=level) if len(plain) == 1 else None
    kinds = [k for k in evidence.results[0].others if all(k in run.others for run in evidence.results)]
    rows = tuple(
        replace(
            _row(method, runs, evidence=evidence, baseline=baseline),
            others={
                kind: _row(method, tuple(run.others[kind] for run in runs), evidence=evidence, baseline=None)
                for kind in kinds
            },
        )
        for method, runs in zip(methods, results, strict=True)
    )
    return Comparison(rows, evidence.protocol, evidence.conditions, evidence.left_out)


def compare_each(records: Sequence[RunRecord]) -> tuple[Comparison, ...]:
    """One comparison for each environment, and for each side of it that was attacked; by name.

    Raises:
        ValueError: no runs, or runs of one environment that `compare` refuses.
    """
    if not records:
        return (compare(records),)
    shown = scenes(records)
    first, *others = (compare(runs) for runs in shown.values())
    every = (Scene.of(evaluation) for run in records for evaluation in run.evaluations.values())
    hidden = tuple(Omission(1, f"evaluations on {scene}") for scene in sorted(set(every) - set(shown)))
    return replace(first, left_out=first.left_out + hidden), *others


def _per_method(methods: Sequence[Method], evidence: Evidence) -> list[tuple[Results, ...]]:
    remaining = iter(evidence.results)
    return [tuple(next(remaining) for _ in method.runs) for method in methods]


def _row(
    method: Method,
    runs: tuple[Results, ...],
    *,
    evidence: Evidence,
    baseline: Estimate | None,
) -> Row:
    level = evidence.protocol.level
    clean = estimate_of([run.clean for run in runs], level=level)
    robust = {
        condition: estimate_of([run.attacked[condition] for run in runs], level=level)
        for condition in evidence.conditions
    }
    epsilons = sorted({condition.epsilon for condition in unlimited(evidence.conditions)})
    worst = {epsilon: [run.worst(epsilon) for run in runs] for epsilon in epsilons}
    return Row(
        method=method,
        clean=clean,
        robust=robust,
        worst={epsilon: Counter(found).most_common(1)[0][0] for epsilon, found in worst.items()},
        strongest={
            epsilon: estimate_of([run.strongest(epsilon) for run in runs], level=level)
            for epsilon in epsilons
        },
        area=_area(runs, epsilons, level=level),
        price=None if method.plain or baseline is None else baseline.minus(clean),
        runs=runs,
    )


def _area(runs: Sequence[Results], epsilons: Sequence[float], *, level: float) -> Estimate:
    sizes = [0.0, *epsilons]
    curves = [[run.clean, *(run.strongest(epsilon) for epsilon in epsilons)] for run in runs]
    if len(curves) > 1:
        areas = [area_under_curve(sizes, [outcome.mean for outcome in curve]) for curve in curves]
        return over_runs(areas, level=level)
    episodes = zip(*(outcome.returns for outcome in curves[0]), strict=True)
    return over_episodes([area_under_curve(sizes, returns) for returns in episodes], level=level)


def estimate_of(outcomes: Sequence[Outcome], *, level: float) -> Estimate:
    """Mean of outcomes of runs, with the interval over runs; of a single one with its own over episodes."""
    if len(outcomes) > 1:
        return over_runs([outcome.mean for outcome in outcomes], level=level)
    (alone,) = outcomes
    return Estimate(alone.mean, alone.low, alone.high, alone.returns, "episodes", level)
