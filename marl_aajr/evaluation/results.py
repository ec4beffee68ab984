"""What an evaluation found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from marl_aajr.core.threat import Norm
from marl_aajr.evaluation.outcomes import LEVEL, AgentOutcome, AttackOutcome, Outcome, Subset, Worst
from marl_aajr.evaluation.protocol import Skipped
from marl_aajr.evaluation.suites import Actions, Units

SCHEMA = 2
"""1: without budgets and norms; readers of 2 read it as well."""


@dataclass(frozen=True)
class Rows:
    """All that was played with one kind of actions.

    Attributes:
        actions: greedy or sampled.
        clean: without attack.
        attacks: one for each attack and size.
        worst: one for each size; empty where nothing was chosen.
        adversarial_agents: one for each replacement.
        subsets: attacks on some agents only, to find the worst; empty where nothing was to be found.
        clean_selection: returns without attack of the selection episodes, which subsets and times are chosen
            on; empty where none are.
    """

    actions: Actions
    clean: Outcome
    attacks: tuple[AttackOutcome, ...]
    worst: tuple[Worst, ...] = ()
    adversarial_agents: tuple[AgentOutcome, ...] = ()
    subsets: tuple[Subset, ...] = ()
    clean_selection: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in RUN/evaluations."""
        return {
            "actions": self.actions,
            "clean_return": self.clean.mean,
            "clean": self.clean.to_json(),
            "clean_selection_return": float(np.mean(self.clean_selection)) if self.clean_selection else None,
            "attacks": [attack.to_json() for attack in self.attacks],
            "worst": [worst.to_json() for worst in self.worst],
            "adversarial_agents": [row.to_json() for row in self.adversarial_agents],
            "subsets": [subset.to_json() for subset in self.subsets],
        }


Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One question about whether the evaluation can be believed, and its answer.

    Attributes:
        name: of the check.
        verdict: `fail`: do not believe the numbers; `warn`: know this before you do.
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
        agents: whose observations may be changed; all others see clearly.
        budget: what the adversary may spend, as text; empty: all of these agents, at every step.
        suite: the suite's name; empty without one.
        units: of ε.
        norm: of ε.
        seed: of the episodes and of the attacks.
        episodes: how many, for each row.
        selection_episodes: how many others the worst attacks were chosen on.
        num_envs: copies played side by side; it decides which episodes are played.
        rows: for each kind of actions.
        skipped: attacks of the suite that the victim does not admit.
        checks: whether it can be believed; without attacks, little can be said.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    teams: Mapping[str, str]
    team: str
    agents: tuple[str, ...]
    budget: str
    suite: str
    units: Units
    norm: Norm
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
            "budget": self.budget,
            "suite": self.suite,
            "units": self.units,
            "norm": self.norm,
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
