"""What the experiments' pages say is what their results hold."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PILOT, MINIMAX = ((ROOT / "experiments" / name / "README.md").read_text() for name in ("pilot", "minimax"))


@pytest.mark.parametrize(("study", "page", "tables"), [("pilot", PILOT, 8), ("minimax", MINIMAX, 6)])
def test_the_tables_of_a_page_are_those_of_its_results(
    tmp_path: Path, study: str, page: str, tables: int
) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "pilot_summary.py"), study, "--out", str(tmp_path)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert sum(row.startswith("|---") for row in rows) == tables
    assert [row for row in rows if row not in page.splitlines()] == []
    assert (tmp_path / "returns.png").stat().st_size > 10_000


def test_the_snippet_of_the_pilot_prints_a_line_for_each_run() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PILOT, re.DOTALL)
    words = [sys.executable, "-c", snippet]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert len(printed.splitlines()) == 48


ALONE = "adversarial training"
METHODS: tuple[str, ...] = ("PPO", ALONE, f"{ALONE} + AAJR on logits", f"{ALONE} + AAJR on margin")
METHODS += (f"{ALONE} + Frobenius", "smooth policy")
Scores = Sequence[tuple[int, int]]


def _rows(scores: Scores, spread: float) -> list[dict[str, Any]]:
    """Three runs of each of `METHODS`, with these mean scores clean and under attacks of either size."""
    rows = []
    for place, (method, (clean, worst)) in enumerate(zip(METHODS, scores, strict=True)):
        for seed in (10, 11, 12):
            shared, own = 20 * (seed - 11), spread * (place % 3) * (seed - 11)
            for epsilon, score in ((0.0, clean), (0.1, worst), (0.2, worst)):
                row = {"label": method, "seed": seed, "epsilon": epsilon, "worst": epsilon > 0}
                rows.append(row | {"attack": "none", "return": score + shared + own})
    return rows


def _curves(gaps: Sequence[float]) -> list[dict[str, Any]]:
    """Two measurements of three runs with adversarial training: far from the end of training, and near."""
    rows = []
    for method, gap in zip(METHODS[1:4], gaps, strict=True):
        for seed in (10, 11, 12):
            row = {"label": method, "seed": seed, "of_steps": 100, "strong_gain": 2.0}
            rows += [
                row | {"env_steps": 50, "inner_gain": 2 * gap},
                row | {"env_steps": 90, "inner_gain": 2 - 2 * gap},
            ]
    return rows


@pytest.mark.parametrize(
    ("scores", "gaps", "spread", "expected"),
    [
        ([(0, 0), (-2, 1), (-2, 2), (-4, 0), (-2, 1), (-4, 1)], (0.05, 0.04, 0.06), 0.1, "sssss"),
        ([(0, 0), (-4, 1), (-4, 0), (-4, 0), (-2, 1), (-3, 1)], (0.05, 0.06, 0.06), 0.1, "rrrrr"),
        ([(0, 0), (-2, 1), (-2, 2), (-4, 2), (-2, 1), (-4, 1)], (0.05, 0.05, 0.06), 9.0, "uuuuu"),
        ([(0, 0), (-2, 1), (-4, 2), (-2, 1), (-2, 2), (-4, 3)], (0.05, 0.06, 0.04), 0.1, "srsuu"),
    ],
)
def test_hypotheses_are_decided_by_the_rules_of_the_page(
    monkeypatch: pytest.MonkeyPatch, scores: Scores, gaps: Sequence[float], spread: float, expected: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    verdicts = importlib.import_module("minimax_verdicts").verdicts
    lines = verdicts(_curves(gaps), _rows(scores, spread))
    assert [word[0] for word in re.findall(r"\*\*(\w+)\*\* \|", "\n".join(lines))] == list(expected)
