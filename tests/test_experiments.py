"""What the experiments' pages say is what their results hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "experiments" / "pilot" / "README.md").read_text()


def test_the_tables_of_the_pilot_are_those_of_its_results(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "pilot_summary.py"), "pilot", "--out", str(tmp_path)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 8 * (2 + 8)
    assert [row for row in rows if row not in PAGE] == []
    assert (tmp_path / "returns.png").stat().st_size > 10_000


def test_the_snippet_of_the_pilot_prints_a_line_for_each_run() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    words = [sys.executable, "-c", snippet]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert len(printed.splitlines()) == 48
