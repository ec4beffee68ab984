"""A finished run with its evaluations, and the refusal of one that a comparison could not rest on.

A page that silently skips an unreadable file compares something else than it says, so that every
gap is an error that names the file and the cure. The files themselves are read by `training.run_record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl_aajr.adversaries.store import how_to_resume
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.training import run_record
from marl_aajr.training.run_record import Iteration, Status, Versions


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
    if not (folder / run_record.CONFIG).exists() and run_record.evaluations_beside(folder).is_dir():
        return _from_elsewhere(folder, _evaluations(folder))
    config = run_record.load_settings(folder)
    status = run_record.load_status(folder)
    _require_finished(folder, status, budget=config["env_steps"])
    return RunRecord(
        path=folder,
        config=config,
        status=status,
        versions=run_record.load_versions(folder),
        metrics=run_record.load_iterations(folder),
        evaluations=_evaluations(folder),
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


def _evaluations(folder: Path) -> Mapping[str, Evaluation]:
    paths = run_record.evaluation_files(folder)
    if not paths:
        raise ValueError(
            f"expected an evaluated run, got {folder} without evaluations; run `marl-aajr evaluate {folder}`"
        )
    return {path.stem: run_record.parse(Evaluation, path) for path in paths}
