"""YAML files whose errors name the line: the values of a mapping, and where in the file each one stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Key = tuple[str | int, ...]
"""Where a value is: keys of mappings and places in lists, from the outside."""


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
        path: the file.
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


def load_yaml(path: Path) -> tuple[dict[str, Any], YamlSource]:
    """A YAML mapping and where its parts are.

    Raises:
        ValueError: no such file, no YAML, no mapping, or a key that is there twice.
    """
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
