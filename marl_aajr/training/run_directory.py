"""The folder of one run: what is in it, who may write to it, and where a run that was stopped goes on.

    config.yaml       every setting, defaults written out
    versions.json     what it was made with, and the seed
    status.json       running | finished | interrupted | failed, iteration, env_steps, error
    metrics.jsonl     one JSON object per iteration
    events.jsonl      restarts, if there were any
    tensorboard/      the same as curves
    initial_policy/   what it began with, if not with random networks
    language_model/   configuration and tokenizer of the folder that a language model comes from
    checkpoints/      000010/ ..., complete or absent
    victim/           the trained team, playable without Ray
    adversary/        with method atla: the adversaries that it was trained against
    evaluations/      how it does under attack
    certificates/     what provably no perturbation changes

Everything is written so that a crash at any moment leaves something that can be read and resumed. A run that
is resumed goes on from its last complete checkpoint, which `iterations` lists (`training.trainer` says how).
While a process trains a run it holds the lock of the folder, and every other one is refused.

Each line of `events.jsonl` is a JSON object about one thing that happened to the run besides training: `time`
(UTC), `event`, `iteration` and what belongs to the event. There is no such file where nothing happened.

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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from marl_aajr.language.models import keep_settings
from marl_aajr.training import run_record
from marl_aajr.training.config import RunConfig, load_config
from marl_aajr.training.files import append_line, new_folder, read_lines, write_json, write_text
from marl_aajr.training.run_record import Status, Versions
from marl_aajr.victims import Victim

KEPT_CHECKPOINTS = 2
"""The newest one, and the one before in case a disk loses it."""


class RunDirectory:
    """The paths of a run, and the only way to write them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / run_record.CONFIG
        self.versions_file = self.path / run_record.VERSIONS
        self.status_file = self.path / run_record.STATUS
        self.metrics_file = self.path / run_record.METRICS
        self.events_file = self.path / run_record.EVENTS
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.victim = self.path / "victim"
        self.initial_policy = self.path / "initial_policy"
        self.language_model = self.path / "language_model"
        self.adversary = self.path / "adversary"
        self.evaluations = self.path / run_record.EVALUATIONS
        self.certificates = self.path / run_record.CERTIFICATES
        self._lock = FileLock(self.path / run_record.LOCK, blocking=False, thread_local=False)

    @property
    def is_run(self) -> bool:
        """Whether there is a run here: nothing else has both files."""
        return self.config_file.is_file() and self.status_file.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether there is a run here that has come to its end."""
        return self.is_run and self.status().state == "finished"

    def check_free(self, *, overwrite: bool) -> None:
        """Raise `ValueError` where something is here that is not a run, or a run and `overwrite` is off."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.is_run:
            raise ValueError(
                f"expected a new folder, got {self.path}, which exists and is not a run; choose another"
            )
        state = self.status().state
        if not overwrite:
            raise ValueError(
                f"expected a new folder, got {self.path}, which holds a run ({state}); resume it, "
                "overwrite it, or choose another"
            )

    def create(self, config: RunConfig, *, overwrite: bool = False) -> None:
        """Make the folder, with its configuration, versions and status, in one step, and lock it.

        `ValueError` as by `check_free` and `lock`, and for initial policies that are not there.
        """
        self.check_free(overwrite=overwrite)
        if self.is_run:
            self.lock()
            shutil.rmtree(self.path)
            self.unlock()
        with new_folder(self.path) as folder:
            write_text(folder / self.config_file.name, config.to_yaml())
            write_json(folder / self.versions_file.name, asdict(Versions.here(seed=config.seed)))
            write_json(folder / self.status_file.name, asdict(Status("running")))
            if config.initial_policy is not None:
                Victim.load(config.initial_policy).save(folder / self.initial_policy.name)
            if config.model.language is not None and config.model.language.folder is not None:
                keep_settings(config.model.language.folder, folder / self.language_model.name)
        self.lock()

    def lock(self) -> None:
        """Be the only process that writes here, or raise `ValueError`; one that dies lets others."""
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"expected a run that nobody is training, got {self.path}, which another process is "
                "writing; wait for it or stop it"
            ) from None

    def unlock(self) -> None:
        self._lock.release()

    def require(self) -> None:
        """Raise `ValueError` where there is no run."""
        if not self.is_run:
            raise ValueError(
                f"expected the folder of a run, got {self.path}, which has no config.yaml and status.json; "
                "train one there first"
            )

    def config(self) -> RunConfig:
        """The run's configuration; `ValueError` for no run, and for one that cannot be read."""
        self.require()
        return load_config(self.config_file)

    def resumed(self, config: RunConfig) -> RunConfig:
        """A run's configuration as it is built from what is here: all weights are in a checkpoint, if any."""
        language = config.model.language
        if language is None or language.folder is None or not self.iterations():
            return config
        if not self.language_model.is_dir():  # a run of an older version
            return config
        language = language.model_copy(update={"folder": str(self.language_model)})
        model = config.model.model_copy(update={"language": language})
        return config.model_copy(update={"model": model})

    def status(self) -> Status:
        """The state and the progress of the run; `ValueError` likewise."""
        self.require()
        return run_record.parse(Status, self.status_file)

    def write_status(self, status: Status) -> None:
        write_json(self.status_file, asdict(status))

    def metrics(self) -> list[dict[str, Any]]:
        """All iterations, oldest first, as `read_lines` reads them."""
        return read_lines(self.metrics_file)

    def append_event(self, event: Event, *, iteration: int, **details: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(self.events_file, {"time": now, "event": event, "iteration": iteration, **details})

    def events(self) -> list[dict[str, Any]]:
        """The events of the run, oldest first, as `read_lines` reads them."""
        return read_lines(self.events_file)

    def truncate_metrics(self, iteration: int) -> None:
        """Drop every line after `iteration`."""
        kept = [line for line in self.metrics() if line["iteration"] <= iteration]
        write_text(self.metrics_file, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept))

    def checkpoint(self, iteration: int) -> Path:
        """The folder of an iteration's checkpoint, whether it is there or not."""
        return self.checkpoints / f"{iteration:06d}"

    def iterations(self) -> list[int]:
        """Iterations with a complete checkpoint, oldest first."""
        return sorted(int(folder.name) for folder in self.checkpoints.glob("*") if folder.name.isdigit())

    def prune_checkpoints(self) -> None:
        """Delete all but the newest checkpoints, and what a crash left half written."""
        keep = {self.checkpoint(i).name for i in self.iterations()[-KEPT_CHECKPOINTS:]}
        for folder in self.checkpoints.iterdir():
            ours = folder.name.isdigit() or folder.name.startswith(".0")
            if ours and folder.name not in keep:
                shutil.rmtree(folder)


Event = Literal["resumed", "restarted", "env_runners_lost", "env_runners_restarted"]


def disturbed(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the run's numbers may differ from those of a run that nothing happened to."""
    lost: list[int] = []
    for event in events:
        if event["event"] in ("env_runners_lost", "env_runners_restarted"):
            lost.append(event["iteration"])
        else:
            # What came after was trained again.
            lost = [iteration for iteration in lost if iteration <= event["iteration"]]
    return bool(lost)
