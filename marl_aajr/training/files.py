"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends well, and vanishes otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would hide a run from the people it is shared with
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, value: Any) -> None:
    """Add a value to a file of JSON lines; a crash loses at most this line. NaN and infinity are refused.

    A last line that was cut short makes way for it.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        _drop_half_line(file)
        file.write(line.encode())


def _drop_half_line(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All values of a file of JSON lines, none where there is no file; a last line cut short is left out.

    Raises:
        ValueError: a broken line before the last.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    result = []
    for number, line in enumerate(lines, start=1):
        try:
            result.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: {error}") from None
    return result


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Within this block, an error for want of room names the folder and the cure.

    Raises:
        OSError: with the folder as its file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        what = f"{os.strerror(error.errno)}: free some room, then resume the run; its checkpoints are whole"
        raise OSError(error.errno, what, str(folder)) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well, and vanishes otherwise.

    `path` may exist as an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
