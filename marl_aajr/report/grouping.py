"""Group runs by method and by task.

Runs that differ in nothing but their seed are one method. What separates two methods is then exactly what
their configurations say, and the page can show that and nothing else. A task is an environment, and the side
whose return counts there.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from marl_aajr.evaluation.result import Evaluation
from marl_aajr.report.conditions import keys_of
from marl_aajr.report.records import RunRecord

PLAIN = "none"
"""Name of the method without a regulariser; the price of robustness is measured from it."""

_NOT_THE_METHOD = ("seed", "resources", "out")
"""Configuration that may differ between the runs of one method."""


@dataclass(frozen=True)
class Method:
    """Runs of one configuration.

    Attributes:
        label: unique among the methods of a page; says what sets it apart.
        name: `method.name` of its configuration.
        config: its configuration as dotted keys, without seed, resources and output, and without what is
            null: null and absent both mean not set.
        runs: by seed.
    """

    label: str
    name: str
    config: Mapping[str, Any]
    runs: tuple[RunRecord, ...]

    @property
    def plain(self) -> bool:
        """Whether it is the method without a regulariser."""
        return self.name == PLAIN


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`.

    An empty mapping stays a value, so that `kwargs: {}` differs from no `kwargs`.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def by_method(records: Iterable[RunRecord]) -> tuple[Method, ...]:
    """Sort runs into methods, the plain one first, then by label.

    The order depends on the configurations alone, so that a method keeps its place and colour
    whatever the order of the command line.

    Raises:
        ValueError: two runs with the same configuration and seed; they are one experiment, and
            counting it twice would narrow the interval.
    """
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[json.dumps(_method_config(record), sort_keys=True, default=str)].append(record)
    for runs in groups.values():
        runs.sort(key=lambda record: record.seed)
        _refuse_repeated_seed(runs)
    configs = [_method_config(runs[0]) for runs in groups.values()]
    methods = [
        Method(label=label, name=config["method.name"], config=config, runs=tuple(runs))
        for label, config, runs in zip(_labels(configs), configs, groups.values(), strict=True)
    ]
    return tuple(sorted(methods, key=lambda method: (not method.plain, _natural(method.label))))


def differences(methods: Sequence[Method]) -> dict[str, tuple[str, ...]]:
    """Dotted key -> one value per method, for the keys on which they do not all agree."""
    return _differences([method.config for method in methods])


def shared(methods: Sequence[Method]) -> dict[str, str]:
    """Dotted key -> value, for the keys on which all methods agree."""
    different = differences(methods)
    return {key: show(value) for key, value in methods[0].config.items() if key not in different}


def show(value: Any) -> str:
    """A configuration value as a reader would write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def _method_config(record: RunRecord) -> dict[str, Any]:
    kept = {key: value for key, value in record.config.items() if key not in _NOT_THE_METHOD}
    return {key: value for key, value in flatten(kept).items() if value is not None}


def _refuse_repeated_seed(runs: Sequence[RunRecord]) -> None:
    for one, other in pairwise(runs):
        if one.seed == other.seed:
            raise ValueError(
                f"expected runs with different seeds, got {one.path} and {other.path} with the "
                f"same configuration and seed {one.seed}; give each run once, or train another "
                "seed"
            )


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: tuple(show(config[key]) if key in config else "—" for config in configs) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method's name, and where several share it what tells them apart."""
    labels = []
    for config in configs:
        name = config["method.name"]
        namesakes = [other for other in configs if other["method.name"] == name]
        own = [
            f"{key.removeprefix('method.')}={show(config[key])}"
            for key in _differences(namesakes)
            if key in config
        ]
        title = f"{name} (plain PPO)" if name == PLAIN else name
        labels.append(f"{title}, {', '.join(own)}" if own else title)
    return labels


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key under which coefficient=0.03 comes before coefficient=0.1, and 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]


@dataclass(frozen=True, order=True)
class Task:
    """An environment, and the side whose return is compared: there, returns have a meaning in common.

    Attributes:
        environment: its name, and its arguments as JSON where there are any.
        team: the side; empty where there is only one.
    """

    environment: str
    team: str = ""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Task:
        """The task of an evaluation."""
        kwargs = json.dumps(evaluation.env.kwargs, sort_keys=True) if evaluation.env.kwargs else ""
        several = len(set(evaluation.teams.values())) > 1
        return cls(f"{evaluation.env.name} {kwargs}".strip(), evaluation.team if several else "")

    def __str__(self) -> str:
        return f"{self.environment}, {self.team}" if self.team else self.environment

    @property
    def short(self) -> str:
        """Without the package, for headings."""
        name, _, kwargs = self.environment.partition(" ")
        return f"{name.rpartition('.')[2]} {kwargs}".strip() + (f", {self.team}" if self.team else "")


def by_task(records: Sequence[RunRecord]) -> dict[Task, list[RunRecord]]:
    """The runs of each task, with their evaluations in it, in order of the tasks' names.

    Left out are a task of a single run that is compared in another task, where nothing would be compared;
    and, beside one with attacks, a task in which the runs share none.
    """
    found: dict[Task, list[RunRecord]] = defaultdict(list)
    for record in records:
        own: dict[Task, dict[str, Evaluation]] = defaultdict(dict)
        for name, evaluation in record.evaluations.items():
            own[Task.of(evaluation)][name] = evaluation
        for task, evaluations in own.items():
            found[task].append(replace(record, evaluations=evaluations))
    paths = {task: {run.path for run in runs} for task, runs in found.items()}
    shown = [
        task
        for task in sorted(found)
        if len(paths[task]) > 1 or not any(paths[task] < others for others in paths.values())
    ]
    attacked = [task for task in shown if share_attacks([run.evaluations.values() for run in found[task]])]
    return {task: found[task] for task in attacked or shown}


def share_attacks(per_run: Sequence[Iterable[Evaluation]]) -> bool:
    """Whether some attack of some size is in the evaluations of every run."""
    keys = [set(keys_of([(e.results[0], e) for e in evaluations]).values()) for evaluations in per_run]
    return bool(set.intersection(*keys))
