"""Every command and every snippet of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
]
SNIPPETS = [block for language, block in BLOCKS if language == "python"]
SMALL = {
    "train": "--env-steps 400 --hidden 8 --set ppo.train_batch_size=200 --set ppo.minibatch_size=100",
    "adversary": "--env-steps 4000",
    "evaluate": "--episodes 4 --selection-episodes 2",
}
"""Appended to the command of that name: the last of two options counts."""


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


pytestmark = pytest.mark.timeout(900)  # the first test waits for every command


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have been run, in their order."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "marl-aajr":
            words += shlex.split(SMALL.get(words[0], ""))
            run([sys.executable, "-m", "marl_aajr", *words], folder)
    return folder


def test_the_commands_leave_a_report(workplace: Path) -> None:
    assert "</html>" in (workplace / "runs" / "report.html").read_text(encoding="utf-8")


def test_the_scripts_are_there_and_run() -> None:
    """What they do is tested by test_scripts.py and test_demo_script.py; CI runs scripts/test itself."""
    scripts = [command for command in COMMANDS if command.startswith("scripts/")]
    assert scripts == ["scripts/demo", "scripts/test"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["RLlib", "victim", "anything", "core"])
def test_each_snippet_prints_what_it_promises(snippet: str, workplace: Path) -> None:
    assert run([sys.executable, "-W", "ignore", "-c", snippet], workplace).strip()


def test_the_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
