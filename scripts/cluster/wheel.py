"""Builds a wheel of marl_aajr without dependencies, for the runtime environment of a Ray job.

Ray installs a wheel of `py_modules` with `pip install --target`, dependencies included: beside the torch
and the ray of the nodes there would be others, and those would be imported.
"""

from __future__ import annotations

import configparser
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("marl_aajr", "envs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build(target: Path) -> Path:
    """The wheel's path in `target`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        drop_dependencies(copy / "setup.cfg")
        # What pip would ask of the back end that pyproject.toml names, without pip's own seconds.
        command = [sys.executable, "-c", BUILD, folder]
        subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        (built,) = Path(folder).glob("*.whl")
        target.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(built, target / _unique(built)))


def _unique(wheel: Path) -> str:
    """The wheel's name with a build tag: Ray uploads nothing whose name it knows, whatever is in it."""
    name, version, *tags = wheel.name.split("-")
    contents = zipfile.ZipFile(wheel).infolist()
    digest = hashlib.sha256(repr([(item.filename, item.CRC) for item in contents]).encode()).hexdigest()
    return "-".join([name, version, f"0{digest[:12]}", *tags])


def drop_dependencies(setup: Path) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(setup, encoding="utf-8")
    config.remove_option("options", "install_requires")
    config.remove_section("options.extras_require")
    with setup.open("w", encoding="utf-8") as file:
        config.write(file)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
