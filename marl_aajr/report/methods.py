"""Evaluated runs, and the methods that they belong to.

A page that silently skips an unreadable file compares something else than it says, so every gap is an error
that names the file and the cure. The files themselves are read by `training.run_record`.

Runs that differ in nothing but their seed are one method. What separates two methods is then exactly what
their configurations say, and the page can show that and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from marl_aajr.adversaries.store import how_to_resume
from marl_aajr.certificates.certificate import Certificate
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.training import run_record
from marl_aajr.training.fields import flat
from marl_aajr.training.method import NO_METHOD, method_label
from marl_aajr.training.run_record import Iteration, Status, Versions

_NOT_THE_METHOD = ("seed", "resources", "out")
"""Configuration that may differ between the runs of one method."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished run as the report sees it: its files and, by the stems of theirs, at least one evaluation.

    Certificates it has where somebody asked for them.

    Of somebody else's policy only these are known; its configuration is then a name and the environment.
    """

    path: Path
    config: Mapping[str, Any]
    status: Status | None
    versions: Versions | None
    metrics: tuple[Iteration, ...]
    evaluations: Mapping[str, Evaluation]
    certificates: Mapping[str, Certificate] = field(default_factory=dict)

    @property
    def trained_here(self) -> bool:
        """Whether it is a run of ours, and no policy from elsewhere."""
        return self.status is not None

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.config["seed"])


def software_of(runs: Iterable[EvaluatedRun]) -> dict[str, list[str]]:
    """Python and each package -> the versions that the runs were made with, each once."""
    known = [run.versions for run in runs if run.versions is not None]
    found = {"python": dict.fromkeys(versions.python for versions in known)}
    for name in sorted({name for versions in known for name in versions.packages}):
        found[name] = dict.fromkeys(versions.packages.get(name, "absent") for versions in known)
    return {name: list(versions) for name, versions in found.items()}


def load_run(path: Path | str) -> EvaluatedRun:
    """Read a run directory, or what `marl-aajr evaluate` left beside a policy from elsewhere.

    Args:
        path: RUN, as `marl-aajr train` wrote it and `marl-aajr evaluate` completed it; or a checkpoint
            or a saved victim that was evaluated.

    Raises:
        ValueError: no run directory, an unfinished run, no evaluation, or a file that is
            missing or corrupt; the message names the file and what to do.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"expected a run directory, got {folder}, which is no directory")
    if not (folder / run_record.CONFIG).exists() and run_record.beside(folder).is_dir():
        evaluations = _evaluations(folder)
        env = next(iter(evaluations.values())).env
        name = folder.resolve().name
        known = {"env": {"name": env.name, "kwargs": env.kwargs}, "method": {"name": name}, "seed": 0}
        return EvaluatedRun(folder, known, None, None, (), evaluations, _certificates(folder))
    config = run_record.load_settings(folder)
    status = run_record.parse(Status, folder / run_record.STATUS)
    if status.state != "finished":
        why = f" ({status.error})" if status.error else ""
        running = status.state == "running"
        cure = "wait until it has finished" if running else f"finish it with `{how_to_resume(folder)}`"
        raise ValueError(
            f"expected a finished run, got {folder} with state '{status.state}'{why} after "
            f"{status.env_steps} of {config['env_steps']} env steps; {cure}"
        )
    return EvaluatedRun(
        path=folder,
        config=config,
        status=status,
        versions=run_record.parse(Versions, folder / run_record.VERSIONS),
        metrics=run_record.load_iterations(folder),
        evaluations=_evaluations(folder),
        certificates=_certificates(folder),
    )


def _evaluations(folder: Path) -> Mapping[str, Evaluation]:
    paths = run_record.files_of(folder)
    if not paths:
        raise ValueError(
            f"expected an evaluated run, got {folder} without evaluations; run `marl-aajr evaluate {folder}`"
        )
    return {path.stem: run_record.parse(Evaluation, path) for path in paths}


def _certificates(folder: Path) -> Mapping[str, Certificate]:
    """What `marl-aajr certify` left; nobody has to."""
    paths = run_record.files_of(folder, run_record.CERTIFICATES)
    return {path.stem: run_record.parse(Certificate, path) for path in paths}


@dataclass(frozen=True)
class Method:
    """Runs of one configuration, by seed; `name` is its `method.name`.

    Attributes:
        label: unique among the methods of a page; says what sets it apart.
        config: its configuration as dotted keys, without seed, resources and output, and without what is
            null: null and absent both mean not set.
    """

    label: str
    name: str
    config: Mapping[str, Any]
    runs: tuple[EvaluatedRun, ...]

    @property
    def plain(self) -> bool:
        """Whether it is the method without a regulariser."""
        return self.name == NO_METHOD


def by_method(records: Iterable[EvaluatedRun]) -> tuple[Method, ...]:
    """Sort runs into methods, the plain one first, then by label.

    The order depends on the configurations alone, so that a method keeps its place and colour.

    Raises:
        ValueError: two runs with the same configuration and seed; they are one experiment, and
            counting it twice would narrow the interval.
    """
    groups = grouped((json.dumps(_method_config(r), sort_keys=True, default=str), r) for r in records)
    for runs in groups.values():
        runs.sort(key=lambda record: record.seed)
        for one, other in pairwise(runs):
            if one.seed == other.seed:
                raise ValueError(
                    f"expected runs with different seeds, got {one.path} and {other.path} with the same "
                    f"configuration and seed {one.seed}; give each run once, or train another seed"
                )
    configs = [_method_config(runs[0]) for runs in groups.values()]
    titles = [method_label(runs[0].config["method"]) for runs in groups.values()]
    methods = [
        Method(label=label, name=config["method.name"], config=config, runs=tuple(runs))
        for label, config, runs in zip(_labels(titles, configs), configs, groups.values(), strict=True)
    ]
    return tuple(sorted(methods, key=lambda method: (not method.plain, _natural(method.label))))


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Dotted key -> one value per configuration, for the keys on which they do not all agree."""
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: tuple(show(config[key]) if key in config else "—" for config in configs) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Dotted key -> value, for the keys on which all configurations agree."""
    different = differences(configs)
    return {key: show(value) for key, value in configs[0].items() if key not in different}


def show(value: Any) -> str:
    """A configuration value as a reader would write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def _method_config(record: EvaluatedRun) -> dict[str, Any]:
    kept = {key: value for key, value in record.config.items() if key not in _NOT_THE_METHOD}
    return {key: value for key, value in flat(kept, ".").items() if value is not None}


def _labels(titles: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method's name with its teams, and where several share both what tells them apart."""
    labels = []
    for title, config in zip(titles, configs, strict=True):
        namesakes = [other for name, other in zip(titles, configs, strict=True) if name == title]
        keys = [key for key in differences(namesakes) if key in config]
        own = [f"{key.removeprefix('method.')}={show(config[key])}" for key in keys]
        shown = f"{title} (plain PPO)" if title == NO_METHOD else title
        labels.append(f"{shown}, {', '.join(own)}" if own else shown)
    return labels


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key under which coefficient=0.03 comes before coefficient=0.1, and 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]
