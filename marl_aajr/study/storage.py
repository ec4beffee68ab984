"""Copies of finished work wherever pyarrow or fsspec can write, for nodes without a shared disk."""

from __future__ import annotations

from pathlib import Path

import fsspec
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem, copy_files

_LEFT_OUT = ("checkpoints", ".lock")
"""Of no use for a finished run."""


class Storage:
    """A folder at a URI; names in it are relative paths with slashes.

    Args:
        uri: ``s3://bucket/folder``, ``gs://…``, ``file:///…``, or any other that fsspec knows.

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
        """Copy a folder there, without what a finished run does not need."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            inner = file.relative_to(folder)
            if not set(inner.parts) & set(_LEFT_OUT):
                self._copy_there(file, f"{self.root}/{name}/{inner.as_posix()}")

    def pull(self, name: str, folder: Path) -> None:
        """Copy what is there under a name, and not here, into a folder."""
        start = f"{self.root}/{name}".rstrip("/")
        selector = FileSelector(start, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            target = folder / Path(info.path).relative_to(start)
            if info.type == FileType.File and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_files(info.path, str(target), source_filesystem=self.filesystem)

    def _copy_there(self, file: Path, target: str) -> None:
        self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        copy_files(str(file), target, destination_filesystem=self.filesystem)


def _resolve(uri: str) -> tuple[FileSystem, str]:
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except ArrowInvalid:
        other, path = fsspec.core.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(other)), path
    return filesystem, path
