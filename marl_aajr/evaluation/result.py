"""The result of an evaluation: what `evaluate` returns and writes, and everything else reads.

    Evaluation
        results: ActionsResult, ...                         one for greedy, one for sampled actions
            clean: Outcome                                  without attack
            attacks: AttackOutcome, ...                     one row for each attack and size
            training_attack: AttackOutcome | None           under the attack of the run's own training
            worst: WorstAttack, ...                         one for each size
            threats: ThreatOutcome, ...                     faults, disturbed actions, dynamics: no size
            subsets: SubsetOutcome, ...                     attacks on some agents, to find the worst
            adversarial_agents: ReplacementOutcome, ...     one for each replacement of agents
            opponents: OpponentResult, ...                  one for each opponent: clean, attacks, …

A file in RUN/evaluations is `Evaluation.model_dump_json()`; `Evaluation.model_validate_json` reads it back.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, model_validator
from pydantic.dataclasses import dataclass

from marl_aajr.core.threat import SetNorm
from marl_aajr.evaluation.budget import Budget, ReadBudget
from marl_aajr.evaluation.intervals import LEVEL
from marl_aajr.evaluation.outcomes import (
    OWN,
    Actions,
    AttackOutcome,
    AttackSpec,
    Outcome,
    ReplacementKind,
    ReplacementOutcome,
    ResultModel,
    Settings,
    Units,
)
from marl_aajr.evaluation.threats import ThreatOutcome
from marl_aajr.evaluation.worst_attack import WorstAttack
from marl_aajr.victims.noise import ReadSmoothing

Verdict = Literal["pass", "warn", "fail"]


class SubsetOutcome(ResultModel):
    """The returns of the selection episodes under an attack on some agents only.

    Attributes:
        agents: the attacked ones.
        attack: the attack, size included.
        returns: one for each selection episode.
    """

    agents: tuple[str, ...] = Field(min_length=1)
    attack: AttackSpec
    returns: tuple[FiniteFloat, ...] = Field(min_length=1)

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(np.mean(self.returns))


class Rows(ResultModel):
    """The rows of one team with one kind of actions, whoever plays the other teams.

    Attributes:
        clean: without attack.
        attacks: one for each attack and size.
        worst: one for each size; empty where nothing was chosen.
        threats: sensor faults, disturbed actions and other dynamics, which have no ε.
        subsets: attacks on some agents only, to find the worst; empty where nothing was to be found.
        clean_selection: returns of the selection episodes without attack; empty where no choice rests on
            them.
        adversarial_agents: one for each replacement; against an opponent only the controls that play the
            whole team, whose return is that of a team that has learned nothing.
    """

    clean: Outcome
    attacks: tuple[AttackOutcome, ...] = ()
    worst: tuple[WorstAttack, ...] = ()
    threats: tuple[ThreatOutcome, ...] = ()
    subsets: tuple[SubsetOutcome, ...] = ()
    clean_selection: tuple[FiniteFloat, ...] = ()
    adversarial_agents: tuple[ReplacementOutcome, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that the environment reports of every clean episode."""
        return tuple(sorted(self.clean.metrics))

    @property
    def clean_selection_return(self) -> float | None:
        """Mean return of the selection episodes without attack, where they were played."""
        return float(np.mean(self.clean_selection)) if self.clean_selection else None


class OpponentResult(Rows):
    """Everything that was played against one opponent.

    Attributes:
        opponent: its name.
        kind: `stranger`, policies that the team did not train with, or a control.
        agents: the agents of other teams that it plays.
    """

    opponent: str
    kind: ReplacementKind
    agents: tuple[str, ...] = Field(min_length=1)


class ActionsResult(Rows):
    """Everything that was played with one kind of actions; its own rows are against the team's own side.

    Attributes:
        actions: greedy or sampled.
        training_attack: under the attack that the run was trained under; None: there was none, or it does not
            fit. It is no candidate for the worst: other runs do not face it.
        opponents: one for each opponent; `marl_aajr.evaluation.pool_scores` has the mean and the worst.
    """

    actions: Actions
    training_attack: AttackOutcome | None = None
    opponents: tuple[OpponentResult, ...] = ()

    @property
    def sides(self) -> dict[str, Rows]:
        """The rows against every opponent by its name; those against the team's own side are `OWN`."""
        return {OWN: self, **{rows.opponent: rows for rows in self.opponents}}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
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


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Skipped:
    """An attack or a control of a suite that the victim does not admit.

    Attributes:
        attack: its name.
        reason: why it was left out, in words.
    """

    attack: str
    reason: str


class PlayedEnvironment(ResultModel):
    """The environment of an evaluation, and its keyword arguments."""

    name: str
    kwargs: Settings = Field(default_factory=dict)


class Evaluation(ResultModel):
    """Returns of a victim, clean and under attack, over the same episodes.

    Attributes:
        env: the environment.
        teams: the team of each agent.
        team: the team whose return is "the return".
        agents: the agents whose observations may be changed; all others see clearly.
        budget: what the adversary may spend; the empty one: all of these agents, at every step.
        suite: the suite's name; empty without one.
        units: of ε.
        norm: of ε.
        channels: the channels of observations that the attacks are held to; empty: all.
        smoothing: the noise under which the team votes; None: it plays as it is.
        seed: of the episodes and of the attacks.
        episodes: how many, for each row.
        selection_episodes: how many others the worst attacks were chosen on.
        weakest_link: whether the worst attack of each size was also tried on each agent alone.
        num_envs: copies played side by side; it decides which episodes are played.
        level: coverage of the intervals, by bootstrap over episodes.
        results: one for each kind of actions.
        skipped: attacks of the suite that the victim does not admit.
        checks: whether it can be believed; without attacks, little can be said.
    """

    env: PlayedEnvironment
    teams: dict[str, str]
    team: str
    agents: tuple[str, ...]
    budget: ReadBudget = Budget()
    suite: str = ""
    units: Units
    norm: SetNorm = "linf"
    channels: tuple[str, ...] = ()
    smoothing: ReadSmoothing | None = None
    seed: int
    episodes: int = Field(ge=1)
    selection_episodes: int = 0
    weakest_link: bool = False
    num_envs: int = Field(ge=1)
    level: float = Field(default=LEVEL, gt=0, lt=1)
    results: tuple[ActionsResult, ...] = Field(min_length=1)
    skipped: tuple[Skipped, ...] = ()
    checks: tuple[Check, ...] = ()

    @model_validator(mode="after")
    def _as_many_returns_as_episodes(self) -> Self:
        for result in self.results:
            beside = [result.training_attack] if result.training_attack else []
            sides = result.sides.values()
            rows = ((side.clean, *side.attacks, *side.threats, *side.adversarial_agents) for side in sides)
            for outcome in (*chain.from_iterable(rows), *beside):
                if len(outcome.returns) != self.episodes:
                    raise ValueError(f"{len(outcome.returns)} returns for {self.episodes} episodes")
        return self

    @property
    def actions(self) -> Actions:
        """The first kind of actions."""
        return self.results[0].actions

    @property
    def clean(self) -> Outcome:
        """The returns without attack, for the first kind of actions."""
        return self.results[0].clean

    @property
    def attacks(self) -> tuple[AttackOutcome, ...]:
        """One for each attack and size, for the first kind of actions."""
        return self.results[0].attacks

    @property
    def worst(self) -> tuple[WorstAttack, ...]:
        """The worst attack of each size, for the first kind of actions."""
        return self.results[0].worst

    @property
    def adversarial_agents(self) -> tuple[ReplacementOutcome, ...]:
        """One for each replacement, for the first kind of actions."""
        return self.results[0].adversarial_agents

    @property
    def clean_return(self) -> float:
        """The evaluated team's mean return without attack."""
        return self.clean.mean

    @property
    def members(self) -> tuple[str, ...]:
        """The agents of the evaluated team."""
        return tuple(agent for agent, team in self.teams.items() if team == self.team)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed: while there are any, the returns under attack are no evidence."""
        return tuple(check for check in self.checks if check.verdict == "fail")
