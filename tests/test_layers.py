"""Imports point one way, none go round in a circle, and files and functions can be read at one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "core",
    "language",
    "victims",
    "regularizers",
    "attacks",
    "rollout",
    "envs",
    "rllib",
    "training",
    "adversaries",
    "evaluation",
    "certificates",
    "report",
    "study",
    "cli",
)
"""The packages, each above all that it may import."""

FILES = sorted([*(ROOT / "marl_aajr").rglob("*.py"), *(ROOT / "envs").rglob("*.py")])
LINES, BODY = 300, 50


def module_of(path: Path) -> str:
    """`marl_aajr.core.ascent`; what lies in envs/ is installed as `marl_aajr.envs`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "marl_aajr" else ("marl_aajr", *parts))
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The project's modules that import statements name."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name in MODULES or base in MODULES:
                    yield name if name in MODULES else base


def at_import(module: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If):
            yield from ast.walk(node)


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else None


def test_a_layer_imports_only_what_stands_below_it() -> None:
    """Late imports within a function count as well."""
    upward = [
        f"{module} -> {name}"
        for module, path in MODULES.items()
        if (own := layer_of(module)) is not None
        for name in imported(path, ast.walk(tree(path)))
        if (layer_of(name) or 0) > own
    ]
    assert not upward


def test_every_package_has_its_layer() -> None:
    packages = {module.split(".")[1] for module, path in MODULES.items() if path.parent.name != "marl_aajr"}
    assert packages == set(LAYERS)


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {
        module: set(imported(path, at_import(tree(path)))) - {module} for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_files_and_functions_can_be_read_at_one_go() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: length for module, length in lengths.items() if length > LINES}
    bodies = {
        f"{module}.{node.name}": body_length(node)
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: length for name, length in bodies.items() if length > BODY}


def body_length(function: ast.FunctionDef) -> int:
    """Lines without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
