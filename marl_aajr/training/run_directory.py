"""The folder of one run: what is in it, and who may write to it.

    config.yaml       every setting, defaults written out
    versions.json     what it was made with, and the seed
    status.json       running | finished | interrupted | failed, iteration, env_steps, error
    metrics.jsonl     one JSON object per iteration
    events.jsonl      restarts, if there were any
    tensorboard/      the same as curves
    initial_policy/   what it began with, if not with random networks
    checkpoints/      000010/ ..., complete or absent
    victim/           the trained team, playable without Ray
    adversary/        with method atla: the adversaries that it was trained against
    evaluations/      how it does under attack

Everything is written so that a crash at any moment leaves something that can be read and resumed.

`events.jsonl`: what happened to a run besides training; absent where nothing did.

One JSON object per line: `time` (UTC), `event`, `iteration` and what belongs to the event.

    resumed                 a new process went on from the checkpoint of `iteration` (0: from the start);
                            `after`: the state that the last process left (`running`: it was killed),
                            `error`: if it failed, `repeated`: iterations that had to be done again,
                            `versions`: of the packages that are not those of `versions.json`
    restarted               the same process did, after a failure; `error` and `repeated` as above
    env_runners_lost        `count` env runners were gone at the end of `iteration`, the rest went on
    env_runners_restarted   `count` env runners that were lost had been restarted by Ray by the end of it

The first two leave no trace in the numbers, which are those of a run that nothing happened to. The others
do: what was sampled without the lost runners, and by new ones, depends on when they were lost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from marl_aajr.training.config import RunConfig, load_config
from marl_aajr.training.files import Lock, append_line, new_folder, read_lines, write_json, write_text
from marl_aajr.training.versions import changed, versions
from marl_aajr.victims import load_victim

State = Literal["running", "finished", "interrupted", "failed"]

KEPT_CHECKPOINTS = 2
"""The newest one, and the one before in case a disk loses it."""


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes:
        state: what became of it; a run whose process was killed still says `running`.
        iteration: of the last line of `metrics.jsonl`.
        env_steps: environment steps up to there.
        error: why it failed.
    """

    state: State
    iteration: int = 0
    env_steps: int = 0
    error: str | None = None


class RunDirectory:
    """The paths of a run, and the only way to write them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.versions_file = self.path / "versions.json"
        self.status_file = self.path / "status.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.victim = self.path / "victim"
        self.initial_policy = self.path / "initial_policy"
        self.adversary = self.path / "adversary"
        self.evaluations = self.path / "evaluations"
        self._lock = Lock(self.path / ".lock")

    @property
    def is_run(self) -> bool:
        """Whether there is a run here: nothing else has both files."""
        return self.config_file.is_file() and self.status_file.is_file()

    def check_free(self, *, overwrite: bool) -> None:
        """Whether a new run may be made here; nothing is changed.

        Raises:
            ValueError: something is here, and it is not a run or `overwrite` is off.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.is_run:
            raise ValueError(
                f"expected a new folder, got {self.path}, which exists and is not a run; choose another"
            )
        status = self.status()
        if not overwrite:
            raise ValueError(
                f"expected a new folder, got {self.path}, which holds a run ({status.state}); "
                "resume it, overwrite it, or choose another"
            )

    def create(self, config: RunConfig, *, overwrite: bool = False) -> None:
        """Make the folder, with its configuration, versions and status, in one step, and lock it.

        Raises:
            ValueError: see `check_free`; another process is writing here; or there are no initial
                policies where the configuration says.
        """
        self.check_free(overwrite=overwrite)
        if self.is_run:
            self.lock()
            shutil.rmtree(self.path)
            self.unlock()
        with new_folder(self.path) as folder:
            write_text(folder / self.config_file.name, config.to_yaml())
            write_json(folder / self.versions_file.name, versions(seed=config.seed))
            write_json(folder / self.status_file.name, asdict(Status("running")))
            if config.initial_policy is not None:
                load_victim(config.initial_policy).save(folder / self.initial_policy.name)
        self.lock()

    def lock(self) -> None:
        """Be the only process that writes here.

        Raises:
            ValueError: another process is.
        """
        if not self._lock.acquire():
            raise ValueError(
                f"expected a run that nobody is training, got {self.path}, which another process is "
                "writing; wait for it or stop it"
            )

    def unlock(self) -> None:
        """Let others write here."""
        self._lock.release()

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            ValueError: not a run, or a configuration that cannot be read.
        """
        self.require()
        return load_config(self.config_file)

    def require(self) -> None:
        """Raise `ValueError` where there is no run."""
        if not self.is_run:
            raise ValueError(
                f"expected the folder of a run, got {self.path}, which has no config.yaml and status.json; "
                "train one there first"
            )

    def status(self) -> Status:
        """How far the run has come.

        Raises:
            ValueError: not a run, or a status that cannot be read.
        """
        self.require()
        try:
            return Status(**json.loads(self.status_file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected the status of a run in {self.status_file}: {error}") from None

    def changed_versions(self) -> dict[str, str]:
        """The packages that this process has in other versions than the one that began the run."""
        return changed(json.loads(self.versions_file.read_text(encoding="utf-8")))

    def write_status(self, status: Status) -> None:
        """Replace the status."""
        write_json(self.status_file, asdict(status))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one iteration; a crash loses at most this line."""
        append_line(self.metrics_file, line)

    def metrics(self) -> list[dict[str, Any]]:
        """All iterations, oldest first; a last line that a crash cut short is left out.

        Raises:
            ValueError: a broken line before the last.
        """
        return read_lines(self.metrics_file)

    def append_event(self, event: Event, *, iteration: int, **details: Any) -> None:
        """Add what happened to the run."""
        append_event(self.events_file, event, iteration=iteration, **details)

    def events(self) -> list[dict[str, Any]]:
        """What happened to the run, oldest first: see `marl_aajr.training.metrics`.

        Raises:
            ValueError: a broken line before the last.
        """
        return read_lines(self.events_file)

    def truncate_metrics(self, iteration: int) -> None:
        """Drop every line after `iteration`."""
        kept = [line for line in self.metrics() if line["iteration"] <= iteration]
        write_text(self.metrics_file, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept))

    def checkpoint(self, iteration: int) -> Path:
        """Where the checkpoint of an iteration is, or would be."""
        return self.checkpoints / f"{iteration:06d}"

    def iterations(self) -> list[int]:
        """Iterations with a complete checkpoint, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(folder.name) for folder in self.checkpoints.iterdir() if folder.name.isdigit())

    def prune_checkpoints(self) -> None:
        """Delete all but the newest checkpoints, and what a crash left half written."""
        keep = {self.checkpoint(i).name for i in self.iterations()[-KEPT_CHECKPOINTS:]}
        for folder in self.checkpoints.iterdir():
            ours = folder.name.isdigit() or folder.name.startswith(".0")
            if ours and folder.name not in keep:
                shutil.rmtree(folder)


Event = Literal["resumed", "restarted", "env_runners_lost", "env_runners_restarted"]

_DISTURBING: tuple[Event, ...] = ("env_runners_lost", "env_runners_restarted")


def append_event(file: Path, event: Event, *, iteration: int, **details: Any) -> None:
    """Add a line to `events.jsonl`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(file, {"time": now, "event": event, "iteration": iteration, **details})


def disturbed(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the run's numbers may differ from those of a run that nothing happened to."""
    lost: list[int] = []
    for event in events:
        if event["event"] in _DISTURBING:
            lost.append(event["iteration"])
        else:
            # What came after was trained again.
            lost = [iteration for iteration in lost if iteration <= event["iteration"]]
    return bool(lost)
