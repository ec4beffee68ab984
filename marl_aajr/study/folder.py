"""The folder of a study: what is in it, what of it is done, and whether it is still the same study.

study.yaml        the study, defaults written out
events.jsonl      what happened, one JSON object per line
runs/NAME/        run directories; adversaries lie in theirs
judgements/       which runs have been judged, how, and by what
identity          the study's, for places that outlive the folder
tuning/           trials, decisions and what came out of them
logs/NAME.log     why something failed
tune/             Ray Tune's own files
results.parquet   every return of every run
report/           one page per environment
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import ADVERSARIES, is_finished
from marl_aajr.study.changes import changed, first_change
from marl_aajr.study.config import StudyConfig
from marl_aajr.study.graph import Node
from marl_aajr.study.judgements import Judgements
from marl_aajr.study.runs import Run
from marl_aajr.training.fields import differences
from marl_aajr.training.files import YamlSource, append_line, read_lines, write_text
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import LOCK

_OURS = (LOCK, "identity", "events.jsonl", "runs", "judgements", "tuning", "logs", "tune")
_FIXED: tuple[str, ...] = ("evaluation", "adversaries", "tune")
"""What may not change once something has been written by it."""


_LOCK_SECONDS = 60.0
"""How long a process that was told to die may hold its run."""


class StudyFolder:
    """The paths of a study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.study_file = self.path / "study.yaml"
        self.identity_file = self.path / "identity"
        self.events_file = self.path / "events.jsonl"
        self.runs = self.path / "runs"
        self.judgements = Judgements(self.path / "judgements", self.runs)
        self.tuning = self.path / "tuning"
        self.logs = self.path / "logs"
        self.tune = self.path / "tune"
        self.results = self.path / "results.parquet"
        self.report = self.path / "report.html"
        self._lock = FileLock(self.path / LOCK, blocking=False, thread_local=False)

    def run(self, name: str) -> RunDirectory:
        """The directory of a run."""
        return RunDirectory(self.runs / name)

    def trained(self, node: Node) -> RunDirectory:
        """The directory that a node trains: the run, or its adversary's."""
        if node.adversary is None:
            return self.run(node.run.name)
        return self.adversary(node.run, node.adversary)

    def adversary(self, run: Run, entry: AdversaryRequest) -> RunDirectory:
        """The directory of an adversary's run."""
        return RunDirectory(self.run(run.name).path / ADVERSARIES / entry.name)

    @property
    def identity(self) -> str:
        """Random, and the same for as long as there is the folder or its storage."""
        return self.identity_file.read_text(encoding="utf-8").strip()

    def log(self, name: str) -> Path:
        """Where an error of a node is told in full."""
        return self.logs / f"{name.replace('/', '--')}.log"

    def add_log(self, name: str, text: str) -> Path:
        """Tell an error of a node, or of a search, after those before it; where that is."""
        file = self.log(name)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        write_text(file, f"{before}{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
        return file

    def done(self, node: Node) -> bool:
        """Whether a node's work is there."""
        if node.kind == "judge":
            return self.judgements.done(node)
        directory = self.trained(node)
        if node.kind == "adversary":
            return is_finished(directory.path)
        return directory.is_run and directory.status().state == "finished"

    def add_event(self, event: dict[str, Any]) -> None:
        """Add a line to the events."""
        append_line(self.events_file, event)

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return read_lines(self.events_file)

    @contextmanager
    def begun(self, study: StudyConfig) -> Iterator[None]:
        """Make the folder, write the study down, and be the only process that works on it in this block.

        Raises:
            ValueError: another process is.
        """
        for folder in (self.path, self.runs, self.judgements.path, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"expected a study that nobody is running, got {self.path}, which another process is working "
                "on; wait for it or stop it"
            ) from None
        try:
            write_text(self.study_file, study.to_yaml())
            if not self.identity_file.is_file():
                write_text(self.identity_file, f"{uuid4().hex}\n")
            yield
        finally:
            self._lock.release()

    def check_same(self, study: StudyConfig, source: YamlSource) -> None:
        """Whether what is in the folder was made by this study; new runs may have been added to it.

        Raises:
            ValueError: what has been written does not belong to it; names the line that has changed.
        """
        there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if not self.study_file.is_file():
            # A crash, or a storage that is just being fetched, leaves some of ours without it.
            if not self.path.exists() or (self.path.is_dir() and there <= set(_OURS)):
                return
            raise ValueError(f"expected a new folder, got {self.path}, which is not a study; choose another")
        try:
            old = StudyConfig.model_validate(yaml.safe_load(self.study_file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValidationError) as error:
            raise ValueError(f"expected a study in {self.study_file}: {error}") from None
        written = {
            "evaluation": _any(self.judgements.path),
            "adversaries": _any(self.judgements.path) or self._trained_otherwise(old, study),
            "tune": _any(self.tuning),
        }
        for section in _FIXED:
            before, after = (getattr(s, section) for s in (old, study))
            if written[section] and before != after:
                where, change = first_change(section, _plain(before), _plain(after))
                raise changed(f"{source.where(where)}: {'.'.join(map(str, where))}: {change}", self.path)
        self._check_teams(old, study, source)

    def _check_teams(self, old: StudyConfig, study: StudyConfig, source: YamlSource) -> None:
        """Whether the adversaries that are there were trained against the team that is judged."""
        teams = {entry.title: entry.team for entry in old.environments}
        for e, entry in enumerate(study.environments):
            before = teams.get(entry.title, entry.team)
            if before != entry.team and any(self.runs.glob(f"{entry.title}-*/{ADVERSARIES}/*")):
                where = source.where(("environments", e, "team"))
                raise changed(f"{where}: environments.{e}.team: {before} → {entry.team}", self.path)

    def _trained_otherwise(self, old: StudyConfig, study: StudyConfig) -> bool:
        """Whether an adversary is there under a name that now means another."""
        now = {entry.name: entry for entry in study.adversaries}
        return any(
            now.get(entry.name, entry) != entry and any(self.runs.glob(f"*/{ADVERSARIES}/{entry.name}"))
            for entry in old.adversaries
        )

    def check_runs(self, runs: Sequence[Run], source: YamlSource) -> None:
        """Whether the runs in the folder are those of the study.

        Raises:
            ValueError: a run has other settings, or the study has it no longer.
        """
        names = {run.name for run in runs}
        for folder in sorted(self.runs.iterdir()) if self.runs.is_dir() else ():
            if RunDirectory(folder).is_run and folder.name not in names:
                raise changed(f"{source.path}: the run {folder.name} is no longer part of it", self.path)
        for run in runs:
            if (directory := self.run(run.name)).is_run:
                changes = differences(directory.config(), run.config)
                if changes:
                    where = source.where(run.variant.key)
                    raise changed(f"{where}: {run.name}: {'; '.join(changes)}", self.path)


def _plain(section: Any) -> Any:
    if isinstance(section, tuple):
        return [_plain(part) for part in section]
    return None if section is None else section.model_dump(mode="json")


def _any(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def is_there(directory: RunDirectory) -> bool:
    """Whether there is a run already; waits until a process that still writes it is gone.

    Raises:
        ValueError: it stays.
    """
    if not directory.is_run:
        return False
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            directory.lock()
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            directory.unlock()
            return True
