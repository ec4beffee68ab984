"""What a study is: environments × methods × settings × seeds, and what is done with every run.

A study says only what its runs differ in and how they are evaluated; everything that a run can be told is a
`RunConfig`, whose defaults and checks are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.study.entries import (
    EnvironmentEntry,
    EvaluationEntry,
    Grid,
    Label,
    MethodEntry,
    Named,
    TuningEntry,
)
from marl_aajr.training.fields import Count, Section, Whole, once, put, some, validated
from marl_aajr.training.files import YamlSource, load_yaml


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
    storage: str | None = None
    log: Annotated[tuple[Literal["mlflow", "wandb"], ...], AfterValidator(once)] = ()
    film: bool = True

    def to_yaml(self) -> str:
        """This study as YAML, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_study(
    path: str | Path, *, overrides: Mapping[str, tuple[Any, str]] | None = None
) -> tuple[StudyConfig, YamlSource]:
    """The study in a YAML file.

    Args:
        path: the file.
        overrides: dotted key → a value that replaces what the file says, and where it is from, for errors.

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
