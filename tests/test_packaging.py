"""What a user installs: the package list, the wheel, the entry points, the pins."""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import marl_aajr

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, so that no build folder is left in the project."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for name in ("marl_aajr", "envs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, target], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as built:
        yield built


def installed_name(path: Path) -> str:
    """The path inside the wheel of a file in the tree: envs/ is installed as marl_aajr/envs/."""
    relative = path.relative_to(ROOT).as_posix()
    return f"marl_aajr/{relative}" if relative.startswith("envs/") else relative


def tree() -> list[Path]:
    files = [
        path for folder in ("marl_aajr", "envs") for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    return [path for path in files if "__pycache__" not in path.parts and not path.name.startswith(".")]


def test_listed_packages_are_the_tree(setup: configparser.ConfigParser) -> None:
    listed = setup["options"]["packages"].split()
    found = {
        Path(installed_name(path)).parent.as_posix().replace("/", ".")
        for path in tree()
        if path.suffix == ".py"
    }
    assert set(listed) == found
    assert len(listed) == len(set(listed))


def test_every_package_has_an_init() -> None:
    folders = {path.parent for path in tree() if path.suffix == ".py"}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_wheel_holds_every_file_of_the_tree(wheel: zipfile.ZipFile) -> None:
    missing = {installed_name(path) for path in tree()} - set(wheel.namelist())
    assert missing == set()
    assert {"marl_aajr/py.typed", "marl_aajr/envs/__init__.py"} <= set(wheel.namelist())


def test_wheel_installs_no_other_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"marl_aajr"}


def test_wheel_carries_its_licence(wheel: zipfile.ZipFile) -> None:
    (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    text = wheel.read(licence).decode()
    assert "Apache License" in text
    assert "The marl_aajr authors" in text


def test_entry_points_resolve(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser.read_string(wheel.read(name).decode())
    assert parser["console_scripts"]["marl-aajr"] == "marl_aajr.cli.app:main"
    for group in parser.sections():
        for value in parser[group].values():
            module, _, attribute = value.partition(":")
            found = importlib.import_module(module)
            wanted = attribute or ("parallel_env" if hasattr(found, "parallel_env") else "env")
            assert callable(getattr(found, wanted)), value


def test_every_requirement_is_pinned_inside_its_range(setup: configparser.ConfigParser) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    tested = {"games", "tune", "test"}  # the others are places to log to, which scripts/test does not install
    extras = [line for name in tested for line in setup["options.extras_require"][name].splitlines()]
    lines = [*setup["options"]["install_requires"].splitlines(), *extras]
    requirements = [
        Requirement(line.split("#")[0]) for line in lines if line.strip() and not line.startswith("%")
    ]
    assert len(requirements) > 15
    for requirement in requirements:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(normal[name]), requirement


def test_pins_name_no_index_no_path_and_no_local_build() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line)] == []


def test_the_names_at_the_top_are_there_and_loaded_on_first_use() -> None:
    assert all(hasattr(marl_aajr, name) for name in marl_aajr.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nobody'"):
        marl_aajr.nobody  # noqa: B018
    script = "import sys, marl_aajr; print(*{'torch', 'ray'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
