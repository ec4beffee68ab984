"""The files of a run as they are read: by training, studies and reports, with the same checks and messages.

`RunDirectory` writes these files. `parse` and each `load_*` here read one of them, and raise `ValueError`,
with the file and the cure, where it is missing or corrupt. Their names are defined here, once. Nothing in
this module needs Ray.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from marl_aajr.core.compiled import kernels_compiled

CONFIG, STATUS, VERSIONS = "config.yaml", "status.json", "versions.json"
METRICS, EVENTS, EVALUATIONS = "metrics.jsonl", "events.jsonl", "evaluations"
CERTIFICATES = "certificates"

LOCK = ".lock"
"""The file by which a process keeps others from writing into its folder."""

PACKAGES = ("marl-aajr", "torch", "ray", "gymnasium", "pettingzoo", "mpe2", "numpy", "safetensors")
"""The packages that decide the numbers of a run."""

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Status:
    """status.json: how far a run has come.

    Attributes:
        state: of the run; one whose process was killed still says `running`.
        iteration: of the last line of `metrics.jsonl`.
        env_steps: environment steps up to there.
        error: why it failed.
    """

    state: State
    iteration: int = 0
    env_steps: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Versions:
    """versions.json: what a run was made with, so that it can be repeated.

    Attributes:
        python: the version of Python.
        platform: the operating system and the machine's architecture.
        packages: the version of each of `PACKAGES` that is installed.
        seed: of the run; None in a record that does not say.
        compiled: whether small networks went through compiled kernels, which round in other places than
            PyTorch (`marl_aajr.core.compiled`); None likewise.
    """

    python: str
    platform: str
    packages: dict[str, str]
    seed: int | None = None
    compiled: bool | None = None

    @classmethod
    def here(cls, *, seed: int | None = None) -> Versions:
        """Those of this process."""
        packages = {}
        for name in PACKAGES:
            with suppress(metadata.PackageNotFoundError):
                packages[name] = metadata.version(name)
        return cls(platform.python_version(), platform.platform(), packages, seed, kernels_compiled())

    def changed(self) -> dict[str, str]:
        """The packages that this process has in other versions, with its versions."""
        now = Versions.here().packages
        return {name: version for name, version in now.items() if self.packages.get(name) != version}


def software() -> dict[str, str]:
    """The versions of this process; of Python what matters to pickled code, of torch not for which device."""
    from marl_aajr import __version__  # late: what the package offers reads runs

    here = Versions.here()
    packages = {name: version.partition("+")[0] for name, version in here.packages.items()}
    # Shipped code has no installed version.
    return {"Python": here.python.rpartition(".")[0]} | packages | {"marl-aajr": __version__}


def other_versions(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The differences between what two processes answer to `software`, by name with both versions."""
    return [
        f"has {name} {found.get(name, 'nowhere')}, not {version}"
        for name, version in expected.items()
        if found.get(name) != version
    ]


@dataclass(frozen=True)
class Iteration:
    """One line of metrics.jsonl; `return_mean` is None while no episode has ended."""

    iteration: int
    env_steps: int
    seconds: float
    return_mean: float | None = None
    team_returns: dict[str, float | None] | None = None
    modules: dict[str, dict[str, float | None]] = field(default_factory=dict)
    module_teams: dict[str, str] = field(default_factory=dict)


class _Named(TypedDict):
    name: str


class _Settings(TypedDict):
    env: _Named
    method: _Named
    seed: StrictInt
    env_steps: StrictInt


def load_settings(folder: Path) -> Mapping[str, Any]:
    """The configuration of the run in a folder as nested mappings; its environment need not be installed."""
    path = folder / CONFIG
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise _corrupt(path, " ".join(str(error).split())) from error
    _validate(_Settings, config, path)
    return config


def load_iterations(folder: Path) -> tuple[Iteration, ...]:
    """The iterations of a finished run, oldest first; of one that is trained read `RunDirectory.metrics`."""
    path, rows = folder / METRICS, list[Iteration]()
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise _corrupt(path, "it has no line")
    for number, line in enumerate(lines, start=1):
        row = _parse(Iteration, line, path, where=f"line {number}: ")
        if rows and row.env_steps <= rows[-1].env_steps:
            raise _corrupt(path, f"line {number}: env_steps {row.env_steps} after {rows[-1].env_steps}")
        rows.append(row)
    return tuple(rows)


def beside(policy: Path, kind: str = EVALUATIONS) -> Path:
    """The folder of what is known of a policy from elsewhere, whose own folder is not written into."""
    policy = policy.resolve()
    return policy.with_name(f"{policy.name}-{kind}")


def files_of(folder: Path, kind: str = EVALUATIONS) -> list[Path]:
    """Evaluations or certificates of the run in a folder, or of the policy there from elsewhere, by name."""
    inside = (folder / CONFIG).exists() or not beside(folder, kind).is_dir()
    return sorted((folder / kind if inside else beside(folder, kind)).glob("*.json"))


_Value = TypeVar("_Value")


def parse(kind: type[_Value], path: Path) -> _Value:
    """The content of a JSON file of a run as a model."""
    return _parse(kind, _text(path), path)


def _parse(kind: type[_Value], text: str, path: Path, *, where: str = "") -> _Value:
    try:
        return _validate(kind, json.loads(text), path, where=where)
    except json.JSONDecodeError as error:
        raise _corrupt(path, f"{where}not JSON ({error})") from error


def _validate(kind: type[_Value], value: Any, path: Path, *, where: str = "") -> _Value:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "contents"
        got = "" if first["type"] == "missing" else f", got {str(first['input'])[:60]}"
        raise _corrupt(path, f"{where}{key}: {first['msg']}{got}") from error


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
    written_by = {EVALUATIONS: "evaluate", CERTIFICATES: "certify"}
    again = next((by for kind, by in written_by.items() if path.parent.name.endswith(kind)), "train")
    return ValueError(
        f"expected a readable {path.name}, got a corrupt {path}: {what}; "
        f"write it again with `marl-aajr {again}`"
    )
