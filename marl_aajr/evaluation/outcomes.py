"""What came of one batch of episodes, as values and as JSON, and the intervals of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.replacements import Replacement

LEVEL = 0.95
EVERY_STEP = "every step"
_RESAMPLES = 9999


@dataclass(frozen=True)
class Outcome:
    """The returns of one batch of episodes.

    Attributes:
        returns: of the evaluated team (the sum over its agents), one for each episode.
        mean: their mean.
        low: lower end of the interval of the mean; None for a single episode.
        high: upper end.
        team_returns: mean return of every team.
    """

    returns: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    team_returns: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "return": self.mean,
            "low": self.low,
            "high": self.high,
            "returns": list(self.returns),
            "team_returns": dict(self.team_returns),
        }


@dataclass(frozen=True)
class AttackOutcome:
    """One attack at one size.

    Attributes:
        attack: the attack, radius included.
        outcome: the returns under it.
        success_rate: share of attacked decisions whose greedy action changed.
        objective_gain: mean of g(δ) − g(0), g the attack's own objective.
        kl: mean KL(π(·|s) ‖ π(·|s + δ)) in nats: the same measure for all attacks.
        epsilons: by attacked agent, its ε.
        budget: in which steps, in words.
        strikes: mean number of attacked steps an episode, as the judge counted them; None: every step.
    """

    attack: Attack
    outcome: Outcome
    success_rate: float
    objective_gain: float
    kl: float
    epsilons: Mapping[str, float] = field(default_factory=dict)
    budget: str = EVERY_STEP
    strikes: float | None = None

    @property
    def agents(self) -> tuple[str, ...]:
        """Who was attacked."""
        return tuple(self.epsilons)

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "attack": self.attack.name,
            "access": self.attack.access,
            "settings": self.attack.settings,
            "epsilon": self.attack.perturbations.epsilon,
            "agents": list(self.agents),
            "epsilons": dict(self.epsilons),
            "budget": self.budget,
            "attacked_steps": self.strikes,
            **self.outcome.to_json(),
            "success_rate": self.success_rate,
            "objective_gain": self.objective_gain,
            "kl": self.kl,
        }


@dataclass(frozen=True)
class Subset:
    """An attack on some agents only, on the selection episodes: whom it is worst for.

    Attributes:
        agents: who was attacked.
        attack: by what, radius included.
        returns: one for each selection episode.
    """

    agents: tuple[str, ...]
    attack: Attack
    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "agents": list(self.agents),
            "attack": self.attack.name,
            "settings": self.attack.settings,
            "epsilon": self.attack.perturbations.epsilon,
            "selection_return": self.mean,
            "selection_returns": list(self.returns),
        }


@dataclass(frozen=True)
class Worst:
    """The strongest of the attacks tried at one size, chosen on other episodes than it is reported on.

    Attributes:
        epsilon: the size.
        chosen: what had the lowest mean return on the selection episodes.
        selected_on: that mean return.
        runner_up: what had the next lowest there; None: nothing else was tried.
    """

    epsilon: float
    chosen: AttackOutcome
    selected_on: float
    runner_up: AttackOutcome | None = None

    @property
    def lead(self) -> Difference | None:
        """Return under the chosen attack minus that under the next, on the reported episodes."""
        if self.runner_up is None:
            return None
        return paired_difference(self.chosen.outcome.returns, self.runner_up.outcome.returns)

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations; its returns are those of the attack's own row."""
        row = self.chosen.to_json()
        kept = ("attack", "settings", "epsilon", "agents", "budget", "return", "low", "high")
        return {
            **{key: row[key] for key in kept},
            "selection_return": self.selected_on,
            "runner_up": self._rival(),
        }

    def _rival(self) -> dict[str, Any] | None:
        if self.runner_up is None or self.lead is None:
            return None
        attack = self.runner_up.attack
        return {"attack": attack.name, "settings": attack.settings, **self.lead._asdict()}


@dataclass(frozen=True)
class AgentOutcome:
    """Some agents played by something else than the victim.

    Attributes:
        replacement: who, and by what.
        outcome: what the evaluated team earned, its replaced members included.
        loyal_return: mean return of those of its members that are still the victim's.
        selected_on: mean return of the team on the selection episodes; None where there are none.
        worst: whether that is the lowest of several of its kind, for as many agents of the same sides.
    """

    replacement: Replacement
    outcome: Outcome
    loyal_return: float
    selected_on: float | None = None
    worst: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "kind": self.replacement.kind,
            "agents": list(self.replacement.agents),
            "settings": self.replacement.settings,
            "source": self.replacement.source,
            **self.outcome.to_json(),
            "loyal_return": self.loyal_return,
            "selection_return": self.selected_on,
            "worst": self.worst,
        }


class Difference(NamedTuple):
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


def paired_difference(a: tuple[float, ...], b: tuple[float, ...]) -> Difference:
    """Mean of a − b over the same episodes, with Student's interval."""
    differences = np.subtract(a, b)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, None, None)
    reach = stats.t.ppf(0.5 + LEVEL / 2, len(differences) - 1) * differences.std(ddof=1)
    reach = float(reach / len(differences) ** 0.5)
    return Difference(mean, mean - reach, mean + reach)


def bootstrap_interval(returns: tuple[float, ...], *, seed: int) -> tuple[float | None, float | None]:
    """Percentile bootstrap of the mean over episodes: what other seeds of the same victim would give.

    It says nothing of other training runs. Source: Efron 1979, by `scipy.stats.bootstrap`.

    Args:
        returns: one for each episode.
        seed: of the resampling.

    Returns:
        The ends of the 95 % interval; None for a single episode, which has none.
    """
    if len(returns) < 2:
        return None, None
    interval = stats.bootstrap(
        (np.array(returns),),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def cancel(returns: Tensor) -> bool:
    """Whether returns `[episodes, agents]` add up to nothing in every episode, and are not nothing."""
    size = returns.abs().sum(-1)
    return bool((size > 0).any() and (returns.sum(-1).abs() <= 1e-6 * size).all())


def by_team(returns: Tensor, agents: Sequence[str], teams: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns `[episodes, agents]` summed over the agents of each team, `[episodes]`."""
    members: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        members.setdefault(teams[agent], []).append(i)
    return {team: returns[:, index].sum(-1) for team, index in members.items()}
