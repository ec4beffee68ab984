"""The command line as a person starts it: a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patience import PATIENCE

CLI = [sys.executable, "-m", "marl_aajr"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def quiet_environment() -> dict[str, str]:
    """One thread each, and a terminal of a known width."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture
def cli(tmp_path: Path) -> Run:
    def run(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
        words = [*CLI, *map(str, arguments)]
        env = quiet_environment() | extra
        return subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return run
