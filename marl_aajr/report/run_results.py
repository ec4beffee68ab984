"""The results of one run: against its own side, and over a pool of opponents that all runs met.

Where there is a pool, a run is judged by it. Play against the own side stays beside it, as such: a method
that trains easier opponents looks better there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from marl_aajr.evaluation.intervals import LEVEL, student_interval
from marl_aajr.evaluation.outcomes import AttackOutcome, Metric, Outcome, ReplacementKind
from marl_aajr.report.conditions import Condition, Played, unlimited
from marl_aajr.report.methods import EvaluatedRun

_OutcomeT = TypeVar("_OutcomeT", bound=Outcome)


@dataclass(frozen=True)
class RunResults:
    """The evaluations of one run under the common protocol: `played` is all that was read for it.

    Attributes:
        chosen: ε -> the worst attack, chosen on episodes that are not reported; without the sizes of which
            the evaluation chose none, or one that not all runs faced.
        selected: ε -> the mean return under the worst attack, 0 -> without one, on episodes that are not
            reported; without the sizes that were not played there.
        others: the results of the same run with actions taken in other ways than the protocol's, by kind.
        controls: the same team at random and idle, against whom `clean` is.
    """

    run: EvaluatedRun
    clean: Outcome
    attacked: Mapping[Condition, AttackOutcome]
    chosen: Mapping[float, Condition] = field(default_factory=dict)
    others: Mapping[str, RunResults] = field(default_factory=dict)
    selected: Mapping[float, float] = field(default_factory=dict)
    controls: Mapping[ReplacementKind, Outcome] = field(default_factory=dict)
    played: tuple[Played, ...] = ()

    @property
    def pool(self) -> Mapping[str, RunResults]:
        """By opponent, where all runs met the same; empty: these results are against its own side."""
        return {}

    @property
    def own_side(self) -> RunResults:
        """Against the other side of its own training; the same in a game of one side."""
        return self

    def worst(self, epsilon: float) -> Condition:
        """The attack of a size that hurts this run most: as chosen, or else by the returns reported."""
        if epsilon in self.chosen:
            return self.chosen[epsilon]
        tried = [condition for condition in unlimited(self.attacked) if condition.epsilon == epsilon]
        return min(tried, key=lambda condition: self.attacked[condition].mean)

    def strongest(self, epsilon: float) -> Outcome:
        """Returns under the attack of a size that hurts this run most."""
        return self.attacked[self.worst(epsilon)]

    def under(self, epsilon: float) -> Outcome:
        """Returns under the worst attack of a size; 0: without an attack."""
        return self.strongest(epsilon) if epsilon else self.clean


@dataclass(frozen=True)
class PoolResults(RunResults):
    """Means over the pool, episode by episode; under attack of a size, each opponent under its own worst.

    Attributes:
        met: the results against each opponent.
        at_home: those against the own side.
    """

    met: Mapping[str, RunResults] = field(kw_only=True)
    at_home: RunResults = field(kw_only=True)

    @property
    def pool(self) -> Mapping[str, RunResults]:
        """By opponent."""
        return self.met

    @property
    def own_side(self) -> RunResults:
        """Against the other side of its own training."""
        return self.at_home

    def worst(self, epsilon: float) -> Condition:
        """The attack of a size that is the worst against most opponents."""
        return Counter(found.worst(epsilon) for found in self.met.values()).most_common(1)[0][0]

    def strongest(self, epsilon: float) -> Outcome:
        """Mean over the pool, against each opponent under the attack of a size that hurts most there."""
        return mean_over_pool([found.strongest(epsilon) for found in self.met.values()])

    def worst_member(self, epsilon: float) -> str:
        """The opponent that leaves least under its worst attack of a size; 0: without an attack.

        By the selection episodes where they were played against all of them, else by those reported.
        """
        chosen = all(epsilon in found.selected for found in self.met.values())

        def left(name: str) -> float:
            found = self.met[name]
            return found.selected[epsilon] if chosen else found.under(epsilon).mean

        return min(self.met, key=left)

    @classmethod
    def of(cls, home: RunResults, met: Mapping[str, RunResults]) -> PoolResults:
        """The results of a run against its own side, and against each opponent of the pool."""
        every = list(met.values())
        return cls(
            home.run,
            mean_over_pool([found.clean for found in every]),
            {c: _mean_attack([found.attacked[c] for found in every]) for c in home.attacked},
            {e: c for e, c in home.chosen.items() if all(e in found.chosen for found in every)},
            controls={
                kind: mean_over_pool([found.controls[kind] for found in every])
                for kind in every[0].controls
                if all(kind in found.controls for found in every)
            },
            played=home.played,
            met=met,
            at_home=home,
        )


def mean_over_pool(outcomes: Sequence[Outcome]) -> Outcome:
    """Mean over opponents, episode by episode: every opponent plays the same episodes."""
    return Outcome.model_validate(_means(outcomes))


def _mean_attack(outcomes: Sequence[AttackOutcome]) -> AttackOutcome:
    shares = ("success_rate", "objective_gain", "kl")
    means = {name: float(np.mean([getattr(each, name) for each in outcomes])) for name in shares}
    return outcomes[0].model_copy(update=_means(outcomes) | means)


def _means(outcomes: Sequence[Outcome]) -> dict[str, object]:
    def over(values: Sequence[Sequence[float]]) -> dict[str, object]:
        found = np.mean(values, axis=0).tolist()
        low, high = student_interval(found, level=LEVEL)
        return {"mean": float(np.mean(found)), "low": low, "high": high, "values": tuple(found)}

    returns = over([outcome.returns for outcome in outcomes])
    sides = set.intersection(*(set(outcome.team_returns) for outcome in outcomes))
    names = set.intersection(*(set(outcome.metrics) for outcome in outcomes))
    metrics = {name: over([outcome.metrics[name].values for outcome in outcomes]) for name in sorted(names)}
    return {
        "returns": returns.pop("values"),
        **returns,
        "team_returns": {s: float(np.mean([o.team_returns[s] for o in outcomes])) for s in sorted(sides)},
        "metrics": {name: Metric.model_validate(found) for name, found in metrics.items()},
    }
