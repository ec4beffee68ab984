"""A study's file: environments × methods × settings × seeds, and what is done with every run.

A study says only what its runs differ in and how they are evaluated; everything that a run can be told is a
`RunConfig`, whose defaults and checks are used as they are. The sections stand first, the whole at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, field_serializer, model_validator

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.evaluation.protocol import Protocol, Suite
from marl_aajr.study.pool_entry import OpponentEntry
from marl_aajr.training.fields import Count, Fraction, Positive, Section, Whole, once, put, some, validated
from marl_aajr.training.files import YamlSource, load_yaml
from marl_aajr.training.method import NO_METHOD, PER_TEAM, method_label


def _label(text: str) -> str:
    if not re.fullmatch(r"[\w.=-]+", text):
        raise ValueError("expected a name out of letters, digits and _ . = -, as it becomes a folder's")
    return text


def masked(text: str, uri: str | None) -> str:
    """A text with the credentials of a URI as `***`: `user:password@`, and options such as `secret_key`."""
    option = r"[?&][^=&]*(?:key|secret|token|pass|sig|cred)[^=&]*=([^&#]*)"
    pairs = re.findall(rf"//([^:@?/]*:[^?]*)@|{option}", uri or "", re.IGNORECASE)
    found = {part for pair in pairs for part in pair}
    found |= {word for words in found for word in words.split(":", 1) if len(word) >= _TELLTALE}
    for secret in sorted(filter(None, found), key=len, reverse=True):
        for spelled in (secret, unquote(secret), quote(secret, safe="")):
            text = text.replace(spelled, "***")
    return text


_TELLTALE = 6
"""Length of a word that stands in a text because it is a user's name or a password, and not by chance."""

Label = Annotated[str, AfterValidator(_label)]
"""Part of a folder's name."""

Values = Annotated[tuple[Any, ...], AfterValidator(some), AfterValidator(once)]
"""The values of one axis of a grid, one after the other."""

Grid = dict[str, Values]
"""Every combination of these."""


class Space(Section):
    """The range or the choices that tuning draws one setting from.

    Attributes:
        low: least value.
        high: greatest value.
        log: draw the logarithm, for settings whose factors count instead of their differences.
        choices: two values or more, instead of a range.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Values | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Space:
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None) or (self.low is None) != (self.high is None):
            raise ValueError("expected {low: A, high: B} or {choices: [...]}; give one of them")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low:g} and {self.high:g}")
        if self.choices is not None and len(self.choices) < 2:
            raise ValueError("expected at least two choices, got 1; set it under run")
        if self.log and not (self.low or 0) > 0:
            raise ValueError("expected low > 0 with log; raise it")
        return self

    @property
    def example(self) -> Any:
        """A value of it."""
        return self.low if self.choices is None else self.choices[0]

    def __str__(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"{'log-uniform' if self.log else 'uniform'} in [{self.low:g}, {self.high:g}]"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Named = BeforeValidator(_named)
"""An entry that says nothing but its name may be that name."""


class EnvironmentEntry(Section):
    """One environment.

    Attributes:
        name: name of the environment, as in a run.
        kwargs: arguments of its constructor, as in a run.
        label: beginning of its runs' names; None: the last part of the name.
        team: the team that is attacked and evaluated; None: the largest.
        reference: two returns, fixed before the runs, between which the report's scores go from 0 to 1; None:
            no scores.
        run: settings of the runs on it, over the study's own.
    """

    name: str = Field(min_length=1)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    label: Label | None = None
    team: str | None = None
    reference: tuple[float, float] | None = None
    run: dict[str, Any] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """`simple_spread_v3` of `marl_aajr.envs.simple_spread_v3`."""
        return self.label or re.sub(r"[^\w.=-]+", "-", re.split(r"[.:/]", self.name)[-1])


class MethodEntry(Section, extra="allow"):
    """One method, or several that differ in a grid of its settings; its settings stand beside these.

    Attributes:
        name: name of the method, as in a run.
        label: word for it in the runs' names; None: its name, and the teams that it is for if they are named.
        grid: settings of the method that take several values; every combination is a method of its own.
        search: dotted settings of the run (`ppo.lr`, `method.coefficient`) that are tuned
            beforehand; not beside `grid`.
        run: settings of its runs, over those of the study and of the environment.
    """

    name: str = NO_METHOD
    label: Label | None = None
    grid: Grid = Field(default_factory=dict)
    search: dict[str, Space] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, data: Any) -> Any:
        """`teams: {adversary: aajr}` in the form that settings of a grid can be put into."""
        if not isinstance(data, Mapping) or not isinstance(teams := data.get("teams"), Mapping):
            return data
        return {"name": PER_TEAM, **data, "teams": {team: _named(each) for team, each in teams.items()}}

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, without those of the grid."""
        return dict(self.model_extra or {})

    @property
    def title(self) -> str:
        """The word for it in the runs' names: `aajr-for-adversary`."""
        return self.label or re.sub(r"[^\w.=-]+", "-", method_label({"name": self.name, **self.settings}))


class EvaluationEntry(Protocol):
    """The evaluation of every run: a protocol, without what the study itself decides.

    Attributes:
        suite: suite, a name or a file as seen from the study's; None: the runs are not evaluated.
        transfer: try perturbations that were computed on another run as well: on the first method's run of
            the next seed.
        opponents: the pool that every team meets in games of several teams, of which none trained with it; a
            team's score is its mean over the pool.
        partners: let members of each run play in the team of every other seed of its method, in the place of
            one agent after the other (zero-shot coordination), where a team has several agents.
    """

    suite: str | InstanceOf[Suite] | None = "standard"
    transfer: bool = True
    opponents: tuple[OpponentEntry, ...] = ()
    partners: Literal["seeds"] | None = None

    @model_validator(mode="after")
    def _decided_elsewhere(self) -> EvaluationEntry:
        if self.suite is None and (self.opponents or self.partners):
            raise ValueError("expected a suite to play with opponents and partners, got none; name one")
        if self.team is not None or self.workers is not None:
            raise ValueError("expected neither team nor workers in evaluation; say team under environments")
        return self

    def protocol(self, suite: Suite, *, team: str | None) -> Protocol:
        """The protocol of one run, which is evaluated by one process."""
        fields = {name: value for name, value in self if name in Protocol.model_fields}
        return Protocol().changed(**fields | {"suite": suite, "team": team, "workers": 1})


class TuningEntry(Section):
    """The same search for every method: Optuna proposes, ASHA stops what lags, both are recorded.

    The score is (1 − w) · clean return + w · return under attack, on episodes that the evaluation does not
    use, of runs whose seeds it does not use.

    Attributes:
        trials: number of settings that are tried for each method on each environment.
        env_steps: environment steps of a trial that is not stopped early.
        rungs: how often trials are scored; each time all but the best 1 / `reduction` are stopped.
        reduction: η of ASHA: a rung lies at η times the environment steps of the one before.
        seeds: seeds of the trials' runs. A trial's score is the mean over them.
        episodes: episodes of each score, clean and attacked.
        episode_seed: seed of those episodes.
        attack: attack by which the return under attack is measured.
        epsilon: size of that attack.
        robust_weight: w, weight of the return under attack.
        seed: seed of Optuna.
    """

    trials: Count
    env_steps: Count
    rungs: Count = 3
    reduction: Annotated[Count, Field(ge=2)] = 3
    seeds: Annotated[tuple[Whole, ...], AfterValidator(some), AfterValidator(once)] = (1000,)
    episodes: Count = 50
    episode_seed: Whole = 1000
    attack: str = "pgd"
    epsilon: Positive = 0.1
    robust_weight: Fraction = 0.5
    seed: Whole = 0


class StudyConfig(Section):
    """One study.

    Attributes:
        name: name of its folder. By default it is the file's.
        title: heading of the report; None: the environments' and methods' names.
        summary: text that says what is asked, for the report.
        environments: the environments.
        methods: the methods to compare. Prices are measured from the first.
        seeds: seeds of the runs.
        grid: dotted settings of the run that take several values, for all environments and methods.
        run: settings of all runs: sections and keys of a run's configuration.
        evaluation: how every run is evaluated.
        adversaries: adversaries to train against every run.
        tune: the search for the settings under `search` of each method; None: no search.
        retries: how often a run is taken up again after an error.
        max_concurrent: runs at a time; None: as many as there is room for.
        address: a running Ray cluster, `host:port` or `auto`; None: RAY_ADDRESS, else this machine.
        storage: place that finished runs are copied to, such as `s3://bucket/studies`; None: nowhere. Nodes
            without a shared disk need it.
        log: other places to log to, by Ray's own callbacks.
        film: show a clean and an attacked episode of each environment in the report.
    """

    name: Label
    title: str | None = None
    summary: str = ""
    environments: Annotated[tuple[Annotated[EnvironmentEntry, Named], ...], AfterValidator(some)]
    methods: Annotated[tuple[Annotated[MethodEntry, Named], ...], AfterValidator(some)]
    seeds: Annotated[tuple[Whole, ...], AfterValidator(some), AfterValidator(once)] = (0,)
    grid: Grid = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationEntry = Field(default_factory=EvaluationEntry)
    adversaries: Annotated[tuple[AdversaryRequest, ...], AfterValidator(once)] = ()
    tune: TuningEntry | None = None
    retries: Whole = 3
    max_concurrent: Count | None = None
    address: str | None = None
    storage: str | None = Field(default=None, repr=False)
    log: Annotated[tuple[Literal["mlflow", "wandb"], ...], AfterValidator(once)] = ()
    film: bool = True

    @field_serializer("storage")
    def _without_credentials(self, storage: str | None) -> str | None:
        return storage and masked(storage, storage)


def load_study(
    path: str | Path, *, overrides: Mapping[str, tuple[Any, str]] | None = None
) -> tuple[StudyConfig, YamlSource]:
    """The study in a YAML file, with overrides: dotted key → a value in its place, and its origin for errors.

    Raises:
        ValueError: one line per problem, naming the line of the file.
    """
    path = Path(path)
    data, source = load_yaml(path)
    data.setdefault("name", path.stem)
    for key, (value, _) in (overrides or {}).items():
        put(data, key, value)
    source = YamlSource(path, source.lines, {key: origin for key, (_, origin) in (overrides or {}).items()})
    return validated(StudyConfig, data, where=source.where), source
