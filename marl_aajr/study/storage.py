"""Copies of finished work wherever pyarrow or fsspec can write, for nodes without a shared disk."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from uuid import uuid4

import fsspec
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem, copy_files

from marl_aajr.adversaries.store import RECORD
from marl_aajr.training.files import replaced
from marl_aajr.training.run_record import LOCK, STATUS

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
            raise ValueError(
                f"storage: expected a place that can be written to, got {uri!r}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error

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
        self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        copy_files(str(file), part, destination_filesystem=self.filesystem)
        self.filesystem.move(part, target)

    def pull(self, name: str, folder: Path) -> None:
        """Copy what is there under a name, and not here, into a folder; each file in one step."""
        start = f"{self.root}/{name}".rstrip("/")
        selector = FileSelector(start, recursive=True, allow_not_found=True)
        found = [info.path for info in self.filesystem.get_file_info(selector) if info.type == FileType.File]
        for path in sorted(found, key=_turn):
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
