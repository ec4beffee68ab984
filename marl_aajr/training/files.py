"""Files that a crash never leaves half written, and YAML files whose errors name the line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import yaml


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


def check_out(path: Path | str | None) -> None:
    """Raise `ValueError` where no file can be written, before what takes hours is done; None: nowhere."""
    if path is None:
        return
    there = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if Path(path).is_dir() or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"expected a file that can be written, got {path}; name another")


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
    """All values of a file of JSON lines, none without a file; only the last line may be cut short."""
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
    """Within this block, an `OSError` for want of room names the folder, as its file name, and the cure."""
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


Key = tuple[str | int, ...]
"""The place of a value: keys of mappings and indices of lists, from the outside."""


class NumberLoader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML reads 5e-4 and 1e6 as text."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class YamlSource:
    """The text that a configuration comes from.

    Attributes:
        lines: the line of every key and list entry.
        overridden: dotted keys that the command line has replaced, and the options that did it.
    """

    path: Path
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """`file.yaml:12` for a key, or for the innermost part of it that the file has."""
        for end in range(len(key), 0, -1):
            if (dotted := ".".join(map(str, key[:end]))) in self.overridden:
                return self.overridden[dotted]
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)

    def problem(self, key: Key, text: str) -> ValueError:
        """The error about a key, with its place."""
        return ValueError(f"{self.where(key)}: {'.'.join(map(str, key))}: {text}")


def load_yaml(path: Path) -> tuple[dict[str, Any], YamlSource]:
    """A YAML mapping and where its parts are; `ValueError` for anything else, or for a key given twice."""
    try:
        loader = NumberLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        lines = {} if node is None else dict(_lines(node, (), path))
        data = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ValueError(f"expected a configuration file at {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: expected YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a mapping of settings in {path}, got {type(data).__name__}")
    return data, YamlSource(path, lines)


def _lines(node: yaml.Node, key: Key, path: Path) -> Iterator[tuple[Key, int]]:
    parts: Sequence[tuple[yaml.Node, str | int, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        parts = [(name, str(name.value), value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(value, index, value) for index, value in enumerate(node.value)]
    first: dict[str | int, int] = {}
    for marked, name, value in parts:
        line = marked.start_mark.line + 1
        if name in first:
            raise ValueError(f"{path}:{line}: {name}: given twice, first in line {first[name]}; remove one")
        first[name] = line
        yield (*key, name), line
        yield from _lines(value, (*key, name), path)
