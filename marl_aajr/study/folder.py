"""The folder of a study: what is in it, what of its work is done, and where copies of it are kept.

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
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec
from filelock import FileLock, Timeout
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FSSpecHandler, PyFileSystem, copy_files

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import ADVERSARIES, RECORD, is_finished
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import Settings, StudyRun, Variant, variants
from marl_aajr.study.study_config import StudyConfig, masked
from marl_aajr.study.study_pool import Opponent
from marl_aajr.training.files import read_lines, replaced, write_json, write_text
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import LOCK, STATUS

DECISIONS = "decisions.json"
"""The file in `tuning/VARIANT` with what a search tried and chose."""

_LOCK_SECONDS = 60.0
"""The time that a process which was told to die may hold its run."""


GROWING = ("surrogate", "partners")
"""What is another for an evaluation with more seeds, or methods in another order: it is made again."""


def evaluated_by(node: Node) -> dict[str, Any]:
    """The settings that an evaluation rests on, as JSON reads them back."""
    assert node.evaluation is not None
    assert node.suite is not None
    pool = {"opponents": [member.name for member in node.opponents]} if node.opponents else {}
    return (
        node.evaluation.model_dump(mode="json", exclude={"opponents"})
        | pool
        | {
            "suite": node.suite.model_dump(mode="json"),
            "team": node.run.variant.environment.team,
            "surrogate": None if node.surrogate is None else node.surrogate.name,
            "adversaries": [entry.model_dump(mode="json") for entry in node.faced],
        }
    )


class StudyFolder:
    """The paths of a study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.study_file = self.path / "study.yaml"
        self.identity_file = self.path / "identity"
        self.events_file = self.path / "events.jsonl"
        self.runs = self.path / "runs"
        self.evaluations = self.path / "evaluations"
        self.tuning = self.path / "tuning"
        self.logs = self.path / "logs"
        self.tune = self.path / "tune"
        self.results = self.path / "results.parquet"
        self.report = self.path / "report.html"
        self._lock = FileLock(self.path / LOCK, blocking=False, thread_local=False)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.runs / name)

    def trained(self, node: Node) -> RunDirectory:
        """The directory that a node trains: the run, or its adversary's."""
        if node.adversary is None:
            return self.run(node.run.name)
        return self.adversary(node.run, node.adversary)

    def adversary(self, run: StudyRun, entry: AdversaryRequest) -> RunDirectory:
        """Its run's directory."""
        return RunDirectory(self.runs / run.name / ADVERSARIES / entry.name)

    def opponent(self, member: Opponent) -> Path | str:
        """The folder of a member of the pool; of a control, its name."""
        if member.run is None:
            return member.victim or member.name
        own = self.run(member.run.name)
        return own.path if member.adversary is None else self.adversary(member.run, member.adversary).path

    @property
    def identity(self) -> str:
        """Random, and the same for as long as there is the folder or its storage."""
        return self.identity_file.read_text(encoding="utf-8").strip()

    def log(self, name: str) -> Path:
        """The file that has the errors of a node, or of a search, in full."""
        return self.logs / f"{name.replace('/', '--')}.log"

    def add_log(self, name: str, text: str) -> Path:
        """Add an error to those before it; returns the file."""
        file = self.log(name)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        write_text(file, f"{before}{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
        return file

    def done(self, node: Node) -> bool:
        """Whether a node's work is there; an evaluation, with the `GROWING` that the run has now."""
        if node.kind == "evaluate":
            then, now = self.was_evaluated_by(node.run), evaluated_by(node)
            return then is not None and all(then.get(name) == now.get(name) for name in GROWING)
        directory = self.trained(node)
        return is_finished(directory.path) if node.kind == "adversary" else directory.is_finished

    def note_file(self, run: StudyRun) -> Path:
        """The small file that says how a run has been evaluated; what was found lies with the run."""
        return self.evaluations / f"{run.name}.json"

    def note_evaluation(self, node: Node, evaluation: str, **what: Any) -> None:
        """Write down that a run has been evaluated, by the file of this name in its evaluations, and more."""
        self.evaluations.mkdir(parents=True, exist_ok=True)
        note = {"asked": evaluated_by(node), "evaluation": evaluation, **what}
        write_json(self.note_file(node.run), note)

    def evaluation_files(self, run: StudyRun) -> list[Path]:
        """The file with what a run's evaluation found, in a list; none where it has not been evaluated."""
        note = _json_object(self.note_file(run))
        file = self.run(run.name).evaluations / (note or {"evaluation": ""})["evaluation"]
        return [file] if file.is_file() else []

    def was_evaluated_by(self, run: StudyRun) -> dict[str, Any] | None:
        """The answer of `evaluated_by` when the run was evaluated; None: it has not been."""
        note = _json_object(self.note_file(run)) if self.evaluation_files(run) else None
        return None if note is None else dict(note["asked"])

    def drop_outdated(self, nodes: Iterable[Node]) -> None:
        """Delete what evaluations have found that are to be done again."""
        for node in nodes:
            if node.kind == "evaluate" and not self.done(node):
                for file in (*self.evaluation_files(node.run), self.note_file(node.run)):
                    file.unlink(missing_ok=True)

    def read_tuning(self, variant: Variant, name: str = DECISIONS) -> dict[str, Any] | None:
        """A file of the search for a variant's settings; None: it is not there."""
        return _json_object(self.tuning / variant.name / name)

    def tuned(self, study: StudyConfig) -> dict[str, Settings]:
        """By variant: the settings that won, of every search that is finished."""
        found = {each.name: self.read_tuning(each) for each in variants(study)} if study.tune else {}
        return {name: decisions["chosen"] for name, decisions in found.items() if decisions is not None}

    def events(self) -> list[dict[str, Any]]:
        """The events of the study, oldest first."""
        return read_lines(self.events_file)

    @contextmanager
    def begun(self, study: StudyConfig) -> Iterator[None]:
        """Make the folder, write the study down, and be the only process that works on it in this block."""
        for folder in (self.path, self.runs, self.evaluations, self.logs):
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
    """Whether there is a run already; waits for a process that still writes it; `ValueError` if it stays."""
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


_LEFT_OUT = ("checkpoints", LOCK)
"""Of no use for a finished run."""

_LAST = (STATUS, RECORD)
"""The files that say that everything else is there."""

_PART = ".part"
"""Ends the name of a file while it is copied there."""


class Storage:
    """A folder at a URI; names in it are relative paths with slashes.

    Args:
        uri: `s3://bucket/folder`, `gs://…`, `file:///…`, or any other that fsspec knows. pyarrow reads
            options in it, such as `?endpoint_override=HOST:PORT&scheme=http` for a store that speaks S3;
            credentials come from where the tools of the store look for them (`AWS_ACCESS_KEY_ID`, …).

    Raises:
        ValueError: nothing can be written there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self.filesystem, self.root = _resolve(self.uri)
            self.filesystem.create_dir(self.root, recursive=True)
        except (OSError, ValueError, ImportError, ArrowInvalid) as error:
            why = " ".join(masked(str(error), uri).split())[:200]
            raise ValueError(
                f"storage: expected a place that can be written to, got {masked(uri, uri)!r}: {why}"
            ) from None

    @contextmanager
    def _discreet(self) -> Iterator[None]:
        """Within this block an error does not repeat the URI's credentials."""
        try:
            yield
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            if masked(told, self.uri) == told:
                raise
            raise OSError(masked(str(error), self.uri)) from None

    def push(self, folder: Path, name: str) -> None:
        """Copy a folder there, without what a finished run does not need; first what its state speaks of."""
        for file in sorted((path for path in folder.rglob("*") if path.is_file()), key=_turn):
            inner = file.relative_to(folder)
            if not set(inner.parts) & set(_LEFT_OUT):
                self.push_file(file, f"{name}/{inner.as_posix()}")

    def push_file(self, file: Path, name: str) -> None:
        """Copy a file there in one step, whoever else does so."""
        target = f"{self.root}/{name}"
        part = f"{target}.{uuid4().hex}{_PART}"
        with self._discreet():
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            copy_files(str(file), part, destination_filesystem=self.filesystem)
            self.filesystem.move(part, target)

    def pull(self, name: str, folder: Path) -> None:
        """Copy what is there under a name, and not here, into a folder; each file in one step."""
        start = f"{self.root}/{name}".rstrip("/")
        selector = FileSelector(start, recursive=True, allow_not_found=True)
        with self._discreet():
            there = [info.path for info in self.filesystem.get_file_info(selector) if info.is_file]
            for path in sorted(there, key=_turn):
                target = folder / Path(path).relative_to(start)
                if not path.endswith(_PART) and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with replaced(target) as file:
                        copy_files(path, str(file), source_filesystem=self.filesystem)


def _turn(path: str | Path) -> int:
    """Files of a lower turn are copied before those of a higher one."""
    name = PurePosixPath(path).name
    return 1 + _LAST.index(name) if name in _LAST else 0


def _resolve(uri: str) -> tuple[FileSystem, str]:
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except ArrowInvalid:
        other, path = fsspec.core.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(other)), path
    return filesystem, path
