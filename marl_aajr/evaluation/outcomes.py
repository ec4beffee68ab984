"""The rows of an evaluation's result: attacks as plain data, returns of episodes, and their statistics.

Attacks are stored as objects (`AttackSpec`), so that nothing has to be guessed from text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from marl_aajr.attacks import Access, Attack, make_attack
from marl_aajr.core.threat import SetNorm
from marl_aajr.evaluation.budget import Timing

Actions = Literal["greedy", "sampled"]
Units = Literal["raw", "network"]
Control = Literal["random", "idle"]
"""Replacements of agents that have learned nothing."""
ReplacementKind = Literal[Control, "traitor", "opponent", "best-response", "partner", "stranger"]
OWN = "own"
"""The name of a team's own side, where opponents have names."""
Radius = Annotated[FiniteFloat, Field(gt=0)]

_SOURCES = ("source", "adversary")
"""Settings of attacks that name the run which a surrogate or a trained adversary comes from."""


def _plain(value: Any) -> Any:
    """A setting as JSON has it; a value without such a form by its `repr`."""
    if isinstance(value, Attack):
        return AttackSpec.of(value).model_dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


Settings = Annotated[dict[str, Any], BeforeValidator(_plain)]
"""Settings by name, as JSON has them: what is read is equal to what was written."""


class ResultModel(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AttackSpec(ResultModel):
    """An attack as it was run, as plain data: compare it, hash it, write it to a file.

    Attributes:
        name: of the attack, as the command line takes it.
        access: what it asks of the policy.
        epsilon: radius of its perturbation set.
        norm: the norm of that set.
        settings: all others of the attack and of its set, None left out.
        source: the run that its surrogate or trained adversary comes from; empty: it needs none.
    """

    name: str
    access: Access
    epsilon: Radius
    norm: SetNorm
    settings: Settings = Field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, attack: Attack) -> Self:
        """The description of an attack."""
        threat = {f.name: getattr(attack.perturbations, f.name) for f in fields(attack.perturbations)}
        own = {f.name: getattr(attack, f.name) for f in fields(attack) if f.repr}
        settings = threat | own
        source = "".join(settings.pop(name, "") for name in _SOURCES)
        for name in ("perturbations", "epsilon", "norm"):
            del settings[name]
        return cls(
            name=attack.name,
            access=attack.access,
            epsilon=attack.perturbations.epsilon,
            norm=attack.perturbations.norm,
            settings={name: value for name, value in settings.items() if value is not None},
            source=source,
        )

    def make(self) -> Attack:
        """The attack itself; what comes from a run (`source`) or must be fitted is to be added to it.

        Raises:
            ValueError: an attack that is not among the registered ones.
        """
        settings = dict(self.settings)
        if isinstance(method := settings.get("method"), Mapping):
            settings["method"] = AttackSpec.model_validate(method).make()
        return make_attack(self.name, epsilon=self.epsilon, norm=self.norm, **settings)

    def at(self, epsilon: float) -> Self:
        """The same attack at another size."""
        return self.model_copy(update={"epsilon": epsilon})

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels of observations that it is held to; empty: all."""
        return tuple(self.settings.get("channels", ()))

    @property
    def label(self) -> str:
        """Its name, and the channels that it is held to: `pgd on messages`."""
        return self.name + (f" on {', '.join(self.channels)}" if self.channels else "")

    @property
    def anonymous(self) -> Self:
        """The same attack without its source, which is each run's own."""
        return self.model_copy(update={"source": ""})

    @property
    def described(self) -> str:
        """The settings without the radius, in words: `norm=linf, objective=kl, steps=10`."""
        shown = {"norm": self.norm, **self.settings} | ({"source": self.source} if self.source else {})
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def __hash__(self) -> int:
        return hash(
            (self.name, self.epsilon, self.norm, self.source, json.dumps(self.settings, sort_keys=True))
        )


class Metric(ResultModel):
    """What an environment reports of its episodes beside rewards; higher is better.

    Attributes:
        mean: its mean.
        low: lower end of the interval of the mean over episodes; None for a single episode.
        high: upper end.
        values: one for each episode.
    """

    mean: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    values: tuple[FiniteFloat, ...] = Field(min_length=1)


class Outcome(ResultModel):
    """The returns of one batch of episodes.

    Attributes:
        mean: mean return of the evaluated team, which is the sum over its agents.
        low: lower end of the interval of the mean over episodes; None for a single episode.
        high: upper end.
        returns: one for each episode.
        team_returns: mean return of every team.
        metrics: what the environment reports of each of the episodes; left out where it reports nothing.
    """

    mean: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    returns: tuple[FiniteFloat, ...] = Field(min_length=1)
    team_returns: dict[str, FiniteFloat] = {}
    metrics: dict[str, Metric] = {}

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        if not self.metrics:
            written.pop("metrics", None)
        return written

    @model_validator(mode="after")
    def _mean_is_the_mean(self) -> Self:
        mean = math.fsum(self.returns) / len(self.returns)
        if not math.isclose(mean, self.mean, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(f"mean {self.mean} is not the mean of its returns, {mean}")
        return self


class AttackedSteps(ResultModel):
    """A limit of the attacked steps, and how many there were.

    Attributes:
        limit: at most so many steps of an episode.
        timing: how they were chosen.
        shortest: length of the shortest selection episode, in steps where an attacked agent acts.
        longest: that of the longest.
        mean: attacked steps of a reported episode, counted by the evaluation itself.
    """

    limit: int
    timing: Timing
    shortest: int
    longest: int
    mean: FiniteFloat

    def __str__(self) -> str:
        lengths = sorted({self.shortest, self.longest})
        return f"{self.limit} of {'–'.join(map(str, lengths))} steps, {self.timing}"


class AttackOutcome(Outcome):
    """The returns under one attack at one size.

    Attributes:
        attack: the attack, size included.
        epsilons: by attacked agent, its ε.
        attacked_steps: in which steps; None: in every one.
        success_rate: share of attacked decisions whose greedy action changed.
        objective_gain: mean of g(δ) − g(0), g the attack's own objective.
        kl: mean KL(π(·|s) ‖ π(·|s + δ)) in nats: the same measure for all attacks.
    """

    attack: AttackSpec
    epsilons: dict[str, Radius]
    attacked_steps: AttackedSteps | None = None
    success_rate: FiniteFloat
    objective_gain: FiniteFloat
    kl: FiniteFloat

    @property
    def agents(self) -> tuple[str, ...]:
        """The attacked agents."""
        return tuple(self.epsilons)

    @property
    def epsilon(self) -> float:
        """The size of the attack."""
        return self.attack.epsilon


class AdversaryTraining(ResultModel):
    """The training of a traitor, an opponent or a best response.

    Attributes:
        pays: its reward: what the victims' team loses, or its own return.
        env_steps: length of the training, the search included.
        search: settings of PPO that were tried.
        seeds: seeds that each of them was tried with.
        curve: environment steps and return in training (`marl_aajr.adversaries.learning_curve`).
        foreign: whether it was trained against other victims than those evaluated here.
    """

    pays: Literal["loss", "own"]
    env_steps: int
    foreign: bool
    search: int = 1
    seeds: int = 1
    curve: tuple[tuple[int, FiniteFloat], ...] = ()


class ReplacementOutcome(Outcome):
    """The returns with some agents played by something else than the victim.

    Attributes:
        kind: what plays them; a partner is a member of another run's or victim's team.
        agents: the replaced ones.
        source: the run that a traitor, an opponent or a partner comes from; empty for the controls.
        training: of a traitor or an opponent; None for the controls.
        loyal_return: mean return of those members of the team that are still the victim's.
        selection_return: mean return of the team on the selection episodes; None where there are none.
        worst: whether that is the lowest of several of its kind, for as many agents of the same sides.
    """

    kind: ReplacementKind
    agents: tuple[str, ...] = Field(min_length=1)
    source: str = ""
    training: AdversaryTraining | None = None
    loyal_return: FiniteFloat
    selection_return: FiniteFloat | None = None
    worst: bool = False

    @property
    def trained(self) -> bool:
        """Whether policies play the agents that were trained to; False for the controls."""
        return self.kind in ("traitor", "opponent", "best-response")

    @property
    def met_as(self) -> ReplacementKind:
        """The kind; an opponent that was trained against other victims is a stranger to these."""
        foreign = self.training is not None and self.training.foreign
        return "stranger" if foreign and self.kind in ("opponent", "best-response") else self.kind

    @property
    def label(self) -> str:
        """Kind and agents: `random agent_0`; of a partner its source, too: `partner agent_0 of seed-1`."""
        source = f" of {self.source}" if self.kind == "partner" else ""
        return f"{self.kind} {', '.join(self.agents)}{source}"
