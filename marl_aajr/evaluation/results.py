"""What an evaluation found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from marl_aajr.attacks import Attack
from marl_aajr.evaluation.protocol import Skipped
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.suites import Actions, Units

SCHEMA = 1
LEVEL = 0.95
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
    """

    attack: Attack
    outcome: Outcome
    success_rate: float
    objective_gain: float
    kl: float

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "attack": self.attack.name,
            "access": self.attack.access,
            "settings": self.attack.settings,
            "epsilon": self.attack.perturbations.epsilon,
            **self.outcome.to_json(),
            "success_rate": self.success_rate,
            "objective_gain": self.objective_gain,
            "kl": self.kl,
        }


@dataclass(frozen=True)
class Worst:
    """The strongest of the attacks tried at one size, chosen on other episodes than it is reported on.

    Attributes:
        epsilon: the size.
        chosen: what had the lowest mean return on the selection episodes.
        selected_on: that mean return.
    """

    epsilon: float
    chosen: AttackOutcome
    selected_on: float

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations; its returns are those of the attack's own row."""
        row = self.chosen.to_json()
        kept = ("attack", "settings", "epsilon", "return", "low", "high")
        return {key: row[key] for key in kept} | {"selection_return": self.selected_on}


@dataclass(frozen=True)
class AgentOutcome:
    """Some agents played by something else than the victim.

    Attributes:
        replacement: who, and by what.
        outcome: what the evaluated team earned, its replaced members included.
        loyal_return: mean return of those of its members that are still the victim's.
        selected_on: mean return of the team on the selection episodes; None where there are none.
        worst: whether that is the lowest of all replacements of its kind and number of agents.
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


@dataclass(frozen=True)
class Rows:
    """All that was played with one kind of actions.

    Attributes:
        actions: greedy or sampled.
        clean: without attack.
        attacks: one for each attack and size.
        worst: one for each size; empty where nothing was chosen.
        adversarial_agents: one for each replacement.
    """

    actions: Actions
    clean: Outcome
    attacks: tuple[AttackOutcome, ...]
    worst: tuple[Worst, ...] = ()
    adversarial_agents: tuple[AgentOutcome, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "actions": self.actions,
            "clean_return": self.clean.mean,
            "clean": self.clean.to_json(),
            "attacks": [attack.to_json() for attack in self.attacks],
            "worst": [worst.to_json() for worst in self.worst],
            "adversarial_agents": [row.to_json() for row in self.adversarial_agents],
        }


Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One question about whether the evaluation can be believed, and its answer.

    Attributes:
        name: of the check.
        verdict: ``fail``: do not believe the numbers; ``warn``: know this before you do.
        text: one sentence, with the numbers.
    """

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a victim does, clean and under attack, over the same episodes.

    Attributes:
        env_name: the environment.
        env_kwargs: its keyword arguments.
        teams: the team of each agent.
        team: the team whose return is "the return".
        agents: whose observations are changed; all others see clearly.
        suite: the suite's name; empty without one.
        units: of ε.
        seed: of the episodes and of the attacks.
        episodes: how many, for each row.
        selection_episodes: how many others the worst attacks were chosen on.
        num_envs: copies played side by side; it decides which episodes are played.
        rows: for each kind of actions.
        skipped: attacks of the suite that the victim does not admit.
        checks: whether it can be believed; empty without attacks.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    teams: Mapping[str, str]
    team: str
    agents: tuple[str, ...]
    suite: str
    units: Units
    seed: int
    episodes: int
    selection_episodes: int
    num_envs: int
    rows: tuple[Rows, ...]
    skipped: tuple[Skipped, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def clean(self) -> Outcome:
        """Without attack, for the first kind of actions."""
        return self.rows[0].clean

    @property
    def attacks(self) -> tuple[AttackOutcome, ...]:
        """One for each attack and size, for the first kind of actions."""
        return self.rows[0].attacks

    @property
    def worst(self) -> tuple[Worst, ...]:
        """The worst attack of each size, for the first kind of actions."""
        return self.rows[0].worst

    @property
    def adversarial_agents(self) -> tuple[AgentOutcome, ...]:
        """One for each replacement, for the first kind of actions."""
        return self.rows[0].adversarial_agents

    @property
    def clean_return(self) -> float:
        """The evaluated team's mean return without attack."""
        return self.clean.mean

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed: while there are any, the returns under attack are no evidence."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    def to_json(self) -> dict[str, Any]:
        """The content of a file in RUN/evaluations."""
        first, *others = self.rows
        return {
            "schema": SCHEMA,
            "env": {"name": self.env_name, "kwargs": dict(self.env_kwargs)},
            "teams": dict(self.teams),
            "team": self.team,
            "agents": list(self.agents),
            "suite": self.suite,
            "units": self.units,
            "seed": self.seed,
            "episodes": self.episodes,
            "selection_episodes": self.selection_episodes,
            "num_envs": self.num_envs,
            "interval": {"level": LEVEL, "method": "bootstrap over episodes"},
            **first.to_json(),
            "others": [rows.to_json() for rows in others],
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "checks": [asdict(check) for check in self.checks],
        }


def bootstrap_interval(returns: tuple[float, ...], *, seed: int) -> tuple[float | None, float | None]:
    """Percentile bootstrap of the mean over episodes: what other seeds of the same victim would give.

    It says nothing of other training runs. Source: Efron 1979, by ``scipy.stats.bootstrap``.

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
