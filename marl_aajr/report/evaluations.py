"""One file of RUN/evaluations, as the report reads it.

Whatever came later than the first of these files is optional: an old evaluation has no budgets, no subsets
and no adversarial agents, and its page shows none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator


class Frozen(BaseModel):
    """A value read from a file; what it does not know it passes over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Environment(Frozen):
    """The environment of an evaluation."""

    name: str
    kwargs: dict[str, Any] = {}


class IntervalRule(Frozen):
    """How the interval inside an evaluation file was made."""

    level: float = Field(gt=0, lt=1)
    method: str


class Outcome(Frozen):
    """Returns of one batch of episodes; `low` and `high` bound the mean over episodes."""

    mean: FiniteFloat = Field(alias="return")
    low: FiniteFloat | None
    high: FiniteFloat | None
    returns: tuple[FiniteFloat, ...] = Field(min_length=1)
    team_returns: dict[str, FiniteFloat] = {}

    @model_validator(mode="after")
    def _mean_is_the_mean(self) -> Outcome:
        mean = math.fsum(self.returns) / len(self.returns)
        if not math.isclose(mean, self.mean, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(f"return {self.mean} is not the mean of its returns, {mean}")
        return self


Size = Annotated[FiniteFloat, Field(gt=0)]


class Attacked(Outcome):
    """Returns under one attack at one size.

    Attributes:
        attack: its name.
        settings: the attack as it was run, apart from its size.
        epsilon: the size.
        agents: who was attacked; empty in older files: those of the evaluation.
        budget: when it was attacked, in words; empty: at every step.
        access: what the attack asks of the policy; empty in older files.
        success_rate: share of attacked decisions that changed.
    """

    attack: str
    settings: str
    epsilon: Size
    agents: tuple[str, ...] = ()
    budget: str = ""
    access: str = ""
    success_rate: float | None = None


class Chosen(Frozen):
    """The worst attack of one size, chosen on episodes that are not reported."""

    attack: str
    settings: str
    epsilon: FiniteFloat
    selection_return: FiniteFloat
    agents: tuple[str, ...] = ()
    budget: str = ""


class Subset(Frozen):
    """One set of agents that was attacked on the selection episodes, to find the weakest."""

    agents: tuple[str, ...] = Field(min_length=1)
    attack: str
    settings: str = ""
    epsilon: Size
    selection_return: FiniteFloat
    selection_returns: tuple[FiniteFloat, ...] = ()


class Replaced(Outcome):
    """Returns with agents replaced: by traitors, opponents, or random or idle ones.

    Attributes:
        kind: traitor, opponent, random or idle.
        agents: who was replaced.
        settings: of the replacement.
        source: where it comes from, such as the run of a trained one.
        loyal_return: of the agents that were not replaced.
        selection_return: on the selection episodes; None where there were none.
        worst: whether that is the lowest of its kind and number of agents.
    """

    kind: str
    agents: tuple[str, ...] = Field(min_length=1)
    settings: str = ""
    source: str = ""
    loyal_return: FiniteFloat | None = None
    selection_return: FiniteFloat | None = None
    worst: bool = False


class Check(Frozen):
    """One question about whether the evaluation can be believed, and its answer."""

    name: str
    verdict: Literal["pass", "warn", "fail"]
    text: str


class Skipped(Frozen):
    """An attack of a suite that the victim does not admit."""

    attack: str
    reason: str


class Rows(Frozen):
    """What was played with one kind of actions."""

    actions: str
    clean: Outcome
    clean_selection_return: FiniteFloat | None = None
    attacks: tuple[Attacked, ...]
    worst: tuple[Chosen, ...] = ()
    subsets: tuple[Subset, ...] = ()
    adversarial_agents: tuple[Replaced, ...] = ()

    def outcomes(self) -> Iterator[Outcome]:
        """Everything that has returns."""
        yield self.clean
        yield from self.attacks
        yield from self.adversarial_agents


class Evaluation(Rows):
    """One file of RUN/evaluations.

    Attributes:
        budget: what the adversary may spend, as `--budget` takes it; empty: everything.
        norm: of ε.
    """

    schema_version: Literal[1, 2] = Field(alias="schema")
    env: Environment
    seed: int
    episodes: int = Field(ge=1)
    selection_episodes: int = 0
    interval: IntervalRule
    others: tuple[Rows, ...] = ()
    checks: tuple[Check, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    suite: str = ""
    units: str = ""
    agents: tuple[str, ...] = ()
    teams: dict[str, str] = {}
    team: str = ""
    budget: str = ""
    norm: str = "linf"
    num_envs: int = 0

    @property
    def members(self) -> set[str]:
        """The agents of the team whose return is reported; in older files, those attacked."""
        members = {agent for agent, team in self.teams.items() if team == self.team}
        return members or set(self.agents)

    @model_validator(mode="after")
    def _as_many_returns_as_episodes(self) -> Evaluation:
        for rows in (self, *self.others):
            for outcome in rows.outcomes():
                if len(outcome.returns) != self.episodes:
                    raise ValueError(f"{len(outcome.returns)} returns for {self.episodes} episodes")
        return self
