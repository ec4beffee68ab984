"""What an evaluation found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from marl_aajr.attacks import Attack

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
            "settings": self.attack.settings,
            "epsilon": self.attack.perturbations.epsilon,
            **self.outcome.to_json(),
            "success_rate": self.success_rate,
            "objective_gain": self.objective_gain,
            "kl": self.kl,
        }


@dataclass(frozen=True)
class Evaluation:
    """How a victim does, clean and under attack, over the same episodes.

    Attributes:
        env_name: the environment.
        env_kwargs: its keyword arguments.
        teams: the team of each agent.
        team: the team that is attacked and whose return is "the return"; the others see clearly.
        seed: of the episodes and of the attacks.
        episodes: how many, for each row.
        num_envs: copies played side by side; it decides which episodes are played.
        clean: without attack.
        attacks: one for each attack and size.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    teams: Mapping[str, str]
    team: str
    seed: int
    episodes: int
    num_envs: int
    clean: Outcome
    attacks: tuple[AttackOutcome, ...]

    @property
    def clean_return(self) -> float:
        """The evaluated team's mean return without attack."""
        return self.clean.mean

    def to_json(self) -> dict[str, Any]:
        """The content of a file in RUN/evaluations."""
        return {
            "schema": SCHEMA,
            "env": {"name": self.env_name, "kwargs": dict(self.env_kwargs)},
            "teams": dict(self.teams),
            "team": self.team,
            "seed": self.seed,
            "episodes": self.episodes,
            "num_envs": self.num_envs,
            "actions": "greedy",
            "interval": {"level": LEVEL, "method": "bootstrap over episodes"},
            "clean_return": self.clean_return,
            "clean": self.clean.to_json(),
            "attacks": [attack.to_json() for attack in self.attacks],
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
