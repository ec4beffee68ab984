"""The folder of a study: what is in it, and what of its work is done.

study.yaml        the study, defaults written out
events.jsonl      what happened, one JSON object per line
runs/NAME/        run directories; adversaries lie in theirs
evaluations/      which runs have been evaluated, how, and by what
identity          the study's, for places that outlive the folder
tuning/           trials, decisions and what came out of them
logs/NAME.log     why something failed
tune/             Ray Tune's own files
results.parquet   every return of every run
report/           one page per environment
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import ADVERSARIES, is_finished
from marl_aajr.study.config import StudyConfig
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import Settings, StudyRun, Variant, variants
from marl_aajr.training.files import append_line, read_lines, write_json, write_text
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import LOCK

DECISIONS = "decisions.json"
"""The file in `tuning/VARIANT` with what a search tried and chose."""

_LOCK_SECONDS = 60.0
"""The time that a process which was told to die may hold its run."""


class EvaluatedRuns:
    """The record of the runs that have been evaluated, and how: one small file for each, beside the runs.

    Args:
        path: the folder of these files.
        runs: the folder of the runs, which hold what the evaluations found.
    """

    def __init__(self, path: Path, runs: Path) -> None:
        self.path = path
        self._runs = runs

    def note_file(self, run: StudyRun) -> Path:
        """The file that `note` writes."""
        return self.path / f"{run.name}.json"

    def files(self, run: StudyRun) -> list[Path]:
        """The file with what a run's evaluation found, in a list; none where it has not been evaluated."""
        note = self._read(run)
        if note is None:
            return []
        file = RunDirectory(self._runs / run.name).evaluations / note["evaluation"]
        return [file] if file.is_file() else []

    def done_by(self, run: StudyRun) -> dict[str, Any] | None:
        """The answer of `evaluated_by` when the run was evaluated; None: it has not been."""
        note = self._read(run)
        return dict(note["asked"]) if note is not None and self.files(run) else None

    def done(self, node: Node) -> bool:
        """Whether the evaluation is there, by the surrogate that the run has now.

        It has another with more seeds, or methods in another order.
        """
        then = self.done_by(node.run)
        return then is not None and then["surrogate"] == evaluated_by(node)["surrogate"]

    def note(self, node: Node, evaluation: str, what: dict[str, Any]) -> None:
        """Write down that a run has been evaluated.

        Args:
            node: the evaluation.
            evaluation: name of the file in the run's evaluations.
            what: more to write down.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        note = {"asked": evaluated_by(node), "evaluation": evaluation, **what}
        write_json(self.note_file(node.run), note)

    def drop_outdated(self, nodes: Iterable[Node]) -> None:
        """Delete what evaluations have found that are to be done again."""
        for node in nodes:
            if node.kind == "evaluate" and not self.done(node):
                for file in (*self.files(node.run), self.note_file(node.run)):
                    file.unlink(missing_ok=True)

    def _read(self, run: StudyRun) -> dict[str, Any] | None:
        return _json_object(self.note_file(run))


def evaluated_by(node: Node) -> dict[str, Any]:
    """The settings that an evaluation rests on, as JSON reads them back."""
    assert node.evaluation is not None
    assert node.suite is not None
    return node.evaluation.model_dump(mode="json") | {
        "suite": node.suite.model_dump(mode="json"),
        "team": node.run.variant.environment.team,
        "surrogate": None if node.surrogate is None else node.surrogate.name,
        "adversaries": [entry.model_dump(mode="json") for entry in node.faced],
    }


class StudyFolder:
    """The paths of a study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.study_file = self.path / "study.yaml"
        self.identity_file = self.path / "identity"
        self.events_file = self.path / "events.jsonl"
        self.runs = self.path / "runs"
        self.evaluated = EvaluatedRuns(self.path / "evaluations", self.runs)
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

    def adversary(self, run: StudyRun, entry: AdversaryRequest) -> RunDirectory:
        """The directory of an adversary's run."""
        return RunDirectory(self.run(run.name).path / ADVERSARIES / entry.name)

    @property
    def identity(self) -> str:
        """Random, and the same for as long as there is the folder or its storage."""
        return self.identity_file.read_text(encoding="utf-8").strip()

    def log(self, name: str) -> Path:
        """The file that has the errors of a node in full."""
        return self.logs / f"{name.replace('/', '--')}.log"

    def add_log(self, name: str, text: str) -> Path:
        """Add an error of a node, or of a search, to those before it; returns the file."""
        file = self.log(name)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        write_text(file, f"{before}{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
        return file

    def done(self, node: Node) -> bool:
        """Whether a node's work is there."""
        if node.kind == "evaluate":
            return self.evaluated.done(node)
        directory = self.trained(node)
        if node.kind == "adversary":
            return is_finished(directory.path)
        return directory.is_run and directory.status().state == "finished"

    def decisions(self, variant: Variant) -> dict[str, Any] | None:
        """The trials and the choice of the search for a variant's settings; None: it is not finished."""
        return self.read_tuning(variant, DECISIONS)

    def read_tuning(self, variant: Variant, name: str) -> dict[str, Any] | None:
        """A file of the search for a variant's settings; None: it is not there."""
        return _json_object(self.tuning / variant.name / name)

    def tuned(self, study: StudyConfig) -> dict[str, Settings]:
        """By variant: the settings that won, of every search that is finished."""
        found = {each.name: self.decisions(each) for each in variants(study)} if study.tune else {}
        return {name: decisions["chosen"] for name, decisions in found.items() if decisions is not None}

    def add_event(self, event: dict[str, Any]) -> None:
        """Add a line to the events."""
        append_line(self.events_file, event)

    def events(self) -> list[dict[str, Any]]:
        """The events of the study, oldest first."""
        return read_lines(self.events_file)

    @contextmanager
    def begun(self, study: StudyConfig) -> Iterator[None]:
        """Make the folder, write the study down, and be the only process that works on it in this block.

        Raises:
            ValueError: another process is.
        """
        for folder in (self.path, self.runs, self.evaluated.path, self.logs):
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


def _json_object(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None: it is not there."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def run_exists(directory: RunDirectory) -> bool:
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
