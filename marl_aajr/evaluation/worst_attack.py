"""Which attack is the worst: the rule, the attack that it found, and whether its lead is beyond chance.

The worst attack of a size leaves the least return on the selection episodes. It is reported on others, where
its return is no longer the least of several by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self, TypeVar

import numpy as np
from pydantic import FiniteFloat
from pydantic.dataclasses import dataclass

from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.intervals import LEVEL, student_interval
from marl_aajr.evaluation.outcomes import AttackOutcome, AttackSpec, ResultModel

_AttackT = TypeVar("_AttackT")


def worst_of_each_size(
    attacks: Iterable[_AttackT], *, size: Callable[[_AttackT], float], left: Callable[[_AttackT], float]
) -> dict[float, list[_AttackT]]:
    """The attacks by size; of each size the worst first, which leaves the least on the selection episodes."""
    found = grouped((size(attack), attack) for attack in sorted(attacks, key=left))
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Difference:
    """A mean difference over the same episodes.

    Attributes:
        difference: its mean.
        low: lower end of its 95 % interval; None for a single episode.
        high: upper end.
    """

    difference: float
    low: float | None
    high: float | None

    @property
    def negative(self) -> bool:
        """Whether the interval lies wholly below 0; False where there is none."""
        return self.high is not None and self.high < 0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a − b over the same episodes, with Student's interval."""
    differences = np.subtract(a, b)
    return Difference(float(differences.mean()), *student_interval(differences, level=LEVEL))


class WorstAttack(ResultModel):
    """The strongest of the attacks tried at one size, chosen on other episodes than it is reported on.

    Attributes:
        attack: the one with the lowest mean return on the selection episodes.
        agents: the attacked agents.
        mean: mean return under it on the reported episodes; see its own row in `ActionsResult.attacks`.
        low: lower end of the interval of that mean.
        high: upper end.
        selection_return: mean return under it on the selection episodes.
        runner_up: the attack with the next lowest return there; None: nothing else was tried.
        lead: return under the attack minus that under the runner-up, on the reported episodes.
    """

    attack: AttackSpec
    agents: tuple[str, ...]
    mean: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    selection_return: FiniteFloat
    runner_up: AttackSpec | None = None
    lead: Difference | None = None

    @property
    def epsilon(self) -> float:
        """The size of the attack."""
        return self.attack.epsilon

    @property
    def sure(self) -> bool:
        """Whether its lead over the runner-up is beyond chance."""
        return self.lead is None or self.lead.negative

    @classmethod
    def of(cls, ordered: Sequence[tuple[AttackOutcome, float]]) -> Self:
        """The first of some rows in the order of `worst_of_each_size`, each with what it left there."""
        (first, left), *others = ordered
        second = others[0][0] if others else None
        return cls(
            attack=first.attack,
            agents=first.agents,
            mean=first.mean,
            low=first.low,
            high=first.high,
            selection_return=left,
            runner_up=None if second is None else second.attack,
            lead=None if second is None else paired_difference(first.returns, second.returns),
        )
