"""Read a finished run directory, and refuse one that a comparison could not rest on.

A page that silently skips an unreadable file compares something else than it says, so every
gap is an error that names the file and the cure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marl_aajr.adversaries.store import how_to_resume
from marl_aajr.evaluation.result import Evaluation

_BESIDE = "-evaluations"
"""Ends the name of the folder beside a policy from elsewhere that its evaluations are in."""

_REQUIRED_CONFIG = ("env", "method", "seed", "env_steps")


class _Record(BaseModel):
    """A value read from a file of a run."""

    model_config = ConfigDict(frozen=True)


class Status(_Record):
    """status.json: how far the training got."""

    state: Literal["running", "finished", "interrupted", "failed"]
    iteration: int
    env_steps: int
    error: str | None = None


class Versions(_Record):
    """versions.json: what the run was made with."""

    python: str
    platform: str
    packages: dict[str, str]


class Iteration(_Record):
    """One line of metrics.jsonl; `return_mean` is None while no episode has ended."""

    iteration: int
    env_steps: int
    seconds: float
    return_mean: float | None = None
    team_returns: dict[str, float | None] | None = None
    modules: dict[str, dict[str, float | None]] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A finished run as the report sees it; or somebody else's policy, known by its evaluations only.

    Attributes:
        path: the run directory, as it was given.
        config: config.yaml, the resolved configuration; of somebody else's policy its name and environment.
        status: status.json; its state is always `finished`. None for somebody else's policy.
        versions: versions.json; None for somebody else's policy.
        metrics: metrics.jsonl, one entry per iteration, in order; empty for somebody else's policy.
        evaluations: file stem -> RUN/evaluations/<stem>.json; never empty.
    """

    path: Path
    config: Mapping[str, Any]
    status: Status | None
    versions: Versions | None
    metrics: tuple[Iteration, ...]
    evaluations: Mapping[str, Evaluation]

    @property
    def trained_here(self) -> bool:
        """Whether it is a run of ours, and no policy from elsewhere."""
        return self.status is not None

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.config["seed"])


def load_run(path: Path | str) -> RunRecord:
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
    beside = folder.resolve().with_name(f"{folder.resolve().name}{_BESIDE}")
    if not (folder / "config.yaml").exists() and beside.is_dir():
        return _from_elsewhere(folder, _evaluations(folder, beside))
    config = _config(folder / "config.yaml")
    status = _parse(Status, folder / "status.json")
    _require_finished(folder, status, budget=config["env_steps"])
    return RunRecord(
        path=folder,
        config=config,
        status=status,
        versions=_parse(Versions, folder / "versions.json"),
        metrics=tuple(_metrics(folder / "metrics.jsonl")),
        evaluations=_evaluations(folder, folder / "evaluations"),
    )


def _from_elsewhere(folder: Path, evaluations: Mapping[str, Evaluation]) -> RunRecord:
    env = next(iter(evaluations.values())).env
    config = {
        "env": {"name": env.name, "kwargs": env.kwargs},
        "method": {"name": folder.resolve().name},
        "seed": 0,
    }
    return RunRecord(folder, config, None, None, (), evaluations)


def _require_finished(folder: Path, status: Status, *, budget: int) -> None:
    if status.state == "finished":
        return
    why = f" ({status.error})" if status.error else ""
    cure = (
        "wait until it has finished"
        if status.state == "running"
        else f"finish it with `{how_to_resume(folder)}`"
    )
    raise ValueError(
        f"expected a finished run, got {folder} with state '{status.state}'{why} "
        f"after {status.env_steps} of {budget} env steps; {cure}"
    )


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise _corrupt(path, " ".join(str(error).split())) from error
    if not isinstance(config, dict):
        raise _corrupt(path, "it is not a mapping")
    missing = [key for key in _REQUIRED_CONFIG if key not in config]
    if missing:
        raise _corrupt(path, f"it lacks {', '.join(missing)}")
    for key in ("seed", "env_steps"):
        if not isinstance(config[key], int):
            raise _corrupt(path, f"{key} should be an integer, not {config[key]!r}")
    for key in ("env", "method"):
        if not isinstance(config[key], dict) or not isinstance(config[key].get("name"), str):
            raise _corrupt(path, f"{key} should be a mapping with a name")
    return config


def _metrics(path: Path) -> Iterator[Iteration]:
    previous = -1
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise _corrupt(path, "it has no line")
    for number, line in enumerate(lines, start=1):
        row = _validate(Iteration, line, path, where=f"line {number}: ")
        if row.env_steps <= previous:
            raise _corrupt(path, f"line {number}: env_steps {row.env_steps} after {previous}")
        previous = row.env_steps
        yield row


def _evaluations(folder: Path, where: Path) -> Mapping[str, Evaluation]:
    paths = sorted(where.glob("*.json"))
    if not paths:
        raise ValueError(
            f"expected an evaluated run, got {folder} without evaluations; run `marl-aajr evaluate {folder}`"
        )
    return {path.stem: _parse(Evaluation, path) for path in paths}


_ModelT = TypeVar("_ModelT", bound=BaseModel)


def _parse(model: type[_ModelT], path: Path) -> _ModelT:
    return _validate(model, _text(path), path)


def _validate(model: type[_ModelT], text: str, path: Path, *, where: str = "") -> _ModelT:
    try:
        return model.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise _corrupt(path, f"{where}not JSON ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _corrupt(path, f"{where}{field or 'contents'}: {first['msg']}") from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            f"expected a run directory, got {path.parent}, which has no {path.name}; "
            "give the folder that `marl-aajr train` wrote"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _corrupt(path, "it is not UTF-8 text") from error


def _corrupt(path: Path, what: str) -> ValueError:
    again = "evaluate" if path.parent.name == "evaluations" else "train"
    return ValueError(
        f"expected a readable {path.name}, got a corrupt {path}: {what}; "
        f"write it again with `marl-aajr {again}`"
    )
