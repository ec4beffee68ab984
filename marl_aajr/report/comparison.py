"""The comparison as numbers: one row per method, with an interval on everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from marl_aajr.core.checks import decimals_for
from marl_aajr.evaluation.result import Check
from marl_aajr.report.common_protocol import Evidence, gather
from marl_aajr.report.conditions import Condition, Omission, Task, by_task, unlimited
from marl_aajr.report.estimates import Estimate, estimate_of, metric_of
from marl_aajr.report.methods import EvaluatedRun, Method, by_method, load_run
from marl_aajr.report.run_results import RunResults


@dataclass(frozen=True)
class MethodRow:
    """One method of a comparison.

    Attributes:
        clean: return without an attack.
        worst_attack: ε -> the attack of that size that is the worst for most of its runs.
        worst_return: ε -> return under the worst attack of that size: of each run under its own, then over
            runs.
        area: mean over ε from 0 to the largest of the return under the worst attack, by trapezoids.
        others: the same method's row for other kinds of actions, of those that every run has, by kind.
        price: clean return of the plain method − clean return of this one; None for the plain
            method itself and where there is no plain one.
    """

    method: Method
    clean: Estimate
    robust: Mapping[Condition, Estimate]
    worst_attack: Mapping[float, Condition]
    worst_return: Mapping[float, Estimate]
    area: Estimate
    runs: tuple[RunResults, ...]
    others: Mapping[str, MethodRow] = field(default_factory=dict)
    price: Estimate | None = None

    def returns(self, epsilon: float) -> tuple[float, ...]:
        """The return of each run under its worst attack of a size; ε = 0: without an attack."""
        return tuple(run.under(epsilon).mean for run in self.runs)

    def lead(self, other: MethodRow, epsilon: float) -> Estimate:
        """Return under the worst attack of a size − that of another method, each under its own."""
        return self.worst_return[epsilon].minus(other.worst_return[epsilon])

    def median_run(self, epsilon: float) -> RunResults:
        """The training run whose return under its own strongest attack of this size is the median.

        Of an even number of runs, the lower of the two in the middle.
        """
        ordered = sorted(self.runs, key=lambda run: run.strongest(epsilon).mean)
        return ordered[(len(ordered) - 1) // 2]

    def median_return(self, epsilon: float) -> Estimate:
        """Return of the median training run under its strongest attack, with the interval over episodes."""
        return estimate_of([self.median_run(epsilon).strongest(epsilon)], level=self.clean.level)

    def metric(self, name: str, epsilon: float = 0.0) -> Estimate:
        """What the environment reports beside rewards: clean, or of each run under its own worst attack."""
        outcomes = [run.under(epsilon) for run in self.runs]
        return metric_of(outcomes, name, level=self.clean.level)

    def to_json(self) -> dict[str, Any]:
        """Plain values of the method: its clean return, and what the worst attack of each size leaves."""
        return {
            "runs": [str(run.run.path) for run in self.runs],
            "clean": self.clean.to_json(),
            "worst": [
                {"epsilon": epsilon, "attack": self.worst_attack[epsilon].attack, **estimate.to_json()}
                for epsilon, estimate in self.worst_return.items()
            ],
            "median_run_under_its_strongest_attack": [
                {
                    "epsilon": epsilon,
                    "attack": (run := self.median_run(epsilon)).worst(epsilon).attack,
                    "run": str(run.run.path),
                    **self.median_return(epsilon).to_json(),
                }
                for epsilon in self.worst_return
            ],
        }


@dataclass(frozen=True)
class Comparison(Evidence):
    """Methods that were evaluated in the same way, the plain one first."""

    rows: tuple[MethodRow, ...]

    @property
    def task(self) -> Task:
        """The environment, and the side whose return is compared."""
        return self.protocol.task

    @cached_property
    def decimals(self) -> int:
        """Decimals of its returns, by their scale."""
        return decimals_for(e for row in self.rows for e in (row.clean, *row.robust.values()))

    @property
    def pool(self) -> tuple[str, ...]:
        """The opponents that every run met, by which all of them are judged; empty without such."""
        return tuple(self.runs[0].pool)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Sizes at which every method faced the same attacks, in rising order."""
        return tuple(sorted({condition.epsilon for condition in unlimited(self.conditions)}))

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the environment reports beside rewards, of every episode of every run."""
        outcomes = [outcome for run in self.runs for outcome in (run.clean, *run.attacked.values())]
        return tuple(sorted(set.intersection(*(set(outcome.metrics) for outcome in outcomes))))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Labels of the attacks, in the order of the evaluations."""
        return tuple(dict.fromkeys(condition.attack for condition in self.conditions))

    @property
    def checks(self) -> dict[str, tuple[Check, ...]]:
        """Path of each run -> the checks of its shown evaluations."""
        return {
            str(run.run.path): tuple(check for _, evaluation in run.played for check in evaluation.checks)
            for run in self.runs
        }

    @property
    def chosen_elsewhere(self) -> bool:
        """Whether every worst attack was chosen on other episodes than it is reported on."""
        return all(set(self.epsilons) <= set(run.chosen) for run in self.runs)

    @property
    def chosen_here(self) -> bool:
        """Whether no worst attack was chosen on other episodes."""
        return not any(run.chosen for run in self.runs)

    @property
    def plain(self) -> MethodRow | None:
        """The row that prices are measured from, where there is exactly one candidate."""
        plain = [row for row in self.rows if row.method.plain]
        return plain[0] if len(plain) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values: the protocol, the methods, and the intervals that tell each pair of them apart."""
        kept = ("episodes", "seed", "units", "level")
        checks = [check for found in self.checks.values() for check in found]
        return {
            "environment": self.task.environment,
            "team": self.task.team,
            **{name: getattr(self.protocol, name) for name in kept},
            "failed_checks": sum(check.verdict == "fail" for check in checks),
            "methods": [
                {
                    "method": row.method.label,
                    **row.to_json(),
                    **self._metrics_of(row),
                    "actions": self.protocol.actions,
                    "others": [{**other.to_json(), "actions": kind} for kind, other in row.others.items()],
                }
                for row in self.rows
            ],
            "differences": [
                {
                    "method": row.method.label,
                    "minus": other.method.label,
                    "clean": row.clean.minus(other.clean).to_json(),
                    "worst": [{"epsilon": e, **row.lead(other, e).to_json()} for e in self.epsilons],
                }
                for row, other in combinations(self.rows, 2)
            ],
        }

    def _metrics_of(self, row: MethodRow) -> dict[str, Any]:
        sizes = (0.0, *self.epsilons)
        found = {n: [{"epsilon": e, **row.metric(n, e).to_json("mean")} for e in sizes] for n in self.metrics}
        return {"metrics": found} if found else {}


def compare(runs: Sequence[EvaluatedRun | Path | str]) -> Comparison:
    """Compare the methods that the runs, finished and evaluated, belong to.

    With at least two runs of a method its intervals are over runs (training seeds), by
    Student's t. With one run they are over episodes, as its evaluation recorded them, and say
    nothing about another seed.

    Raises:
        ValueError: no runs, one seed of a method given twice, or runs evaluated on different
            environments, episodes, seeds or attacks.
    """
    if not runs:
        raise ValueError("expected at least one run, got none; name the run directories")
    methods = by_method(_loaded(runs))
    evidence = gather([run for method in methods for run in method.runs])
    kinds = [k for k in evidence.runs[0].others if all(k in run.others for run in evidence.runs)]
    remaining = iter(evidence.runs)
    rows = []
    for method in methods:
        results = [next(remaining) for _ in method.runs]
        others = {kind: _row(method, [run.others[kind] for run in results], evidence) for kind in kinds}
        rows.append(replace(_row(method, results, evidence), others=others))
    comparison = Comparison(**vars(evidence), rows=tuple(rows))
    if (plain := comparison.plain) is None:
        return comparison
    priced = (row if row is plain else replace(row, price=plain.clean.minus(row.clean)) for row in rows)
    return replace(comparison, rows=tuple(priced))


def compare_each(runs: Sequence[EvaluatedRun | Path | str]) -> tuple[Comparison, ...]:
    """One comparison for each environment, and for each side of it that was attacked; by name.

    Raises:
        ValueError: no runs, or runs of one environment that `compare` refuses.
    """
    records = _loaded(runs)
    if not records:
        return (compare(records),)
    shown = by_task(records)
    first, *others = (compare(members) for members in shown.values())
    every = {Task.of(evaluation) for run in records for evaluation in run.evaluations.values()}
    hidden = tuple(Omission(1, f"evaluations on {task}") for task in sorted(every - set(shown)))
    return replace(first, left_out=first.left_out + hidden), *others


def _loaded(runs: Sequence[EvaluatedRun | Path | str]) -> list[EvaluatedRun]:
    return [run if isinstance(run, EvaluatedRun) else load_run(run) for run in runs]


def _row(method: Method, runs: Sequence[RunResults], evidence: Evidence) -> MethodRow:
    level = evidence.protocol.level
    epsilons = sorted({condition.epsilon for condition in unlimited(evidence.conditions)})
    worst = {epsilon: Counter(run.worst(epsilon) for run in runs) for epsilon in epsilons}
    return MethodRow(
        method=method,
        clean=estimate_of([run.clean for run in runs], level=level),
        robust={
            condition: estimate_of([run.attacked[condition] for run in runs], level=level)
            for condition in evidence.conditions
        },
        worst_attack={epsilon: found.most_common(1)[0][0] for epsilon, found in worst.items()},
        worst_return={
            epsilon: estimate_of([run.strongest(epsilon) for run in runs], level=level)
            for epsilon in epsilons
        },
        area=_area(runs, epsilons, level=level),
        runs=tuple(runs),
    )


def _area(runs: Sequence[RunResults], epsilons: Sequence[float], *, level: float) -> Estimate:
    sizes = [0.0, *epsilons]
    curves = [[run.clean, *map(run.strongest, epsilons)] for run in runs]
    if len(curves) > 1:
        areas = [area_under_curve(sizes, [outcome.mean for outcome in curve]) for curve in curves]
        return Estimate.over("runs", areas, level=level)
    episodes = zip(*(outcome.returns for outcome in curves[0]), strict=True)
    return Estimate.over("episodes", [area_under_curve(sizes, of) for of in episodes], level=level)


def area_under_curve(epsilons: Sequence[float], returns: Sequence[float]) -> float:
    """Mean return over ε from 0 to the largest, by trapezoids: (1/ε_max) ∫ R(ε) dε."""
    return float(np.trapezoid(returns, epsilons) / epsilons[-1])
