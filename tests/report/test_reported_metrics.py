"""What environments report beside rewards, in tables, figures and JSON of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import write_report
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.tables import metrics
from tests.report.evaluations import evaluation
from tests.report.factory import cells, compared


def reporting(clean: float, *attacked: float, seed: int = 0) -> dict[str, Any]:
    """Success rates of the clean row, of noise at 0.1 and 0.2, and of pgd at 0.1 and 0.2."""
    content = evaluation(seed=seed)
    for row, mean in zip((content["clean"], *content["attacks"]), (clean, *attacked), strict=True):
        solved = round(20 * mean)
        values = [1.0] * solved + [0.0] * (20 - solved)
        row["metrics"] = {"success": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "values": values}}
    return content


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    plain = reporting(0.9, 0.8, 0.3, 0.4, 0.2), reporting(0.8, 0.8, 0.1, 0.5, 0.2)
    robust = reporting(0.7, 0.6, 0.6, 0.5, 0.5), reporting(0.6, 0.6, 0.6, 0.5, 0.5)
    return compared(tmp_path, none=list(plain), aajr=list(robust))


def test_higher_is_better_and_the_worst_attack_is_that_of_the_return(comparison: Comparison) -> None:
    blocks = metrics(comparison)
    clean = cells(blocks, "success", "no attack")
    assert [(cell.main, cell.mark) for cell in clean] == [("0.850", "best"), ("0.650", "tied")]
    worst = cells(blocks, "success", "worst return, ε = 0.2")
    assert [(cell.main, cell.note, cell.mark) for cell in worst] == [
        ("0.200", "pgd", ""),
        ("0.500", "pgd", "best"),
    ]
    least = cells(blocks, "success", "least, ε = 0.1")
    assert [(cell.main, cell.note) for cell in least] == [("0.450", "pgd"), ("0.500", "pgd")]


def test_they_are_in_the_json_by_size(comparison: Comparison) -> None:
    method = comparison.to_json()["methods"][0]
    found = {row["epsilon"]: row["mean"] for row in method["metrics"]["success"]}
    assert found == pytest.approx({0.0: 0.85, 0.1: 0.45, 0.2: 0.2})


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_a_table_and_a_panel(comparison: Comparison, tmp_path: Path) -> None:
    page = write_report([comparison], tmp_path / "page.html").read_text()
    assert "Beside the return" in page
    assert "success against ε under each run" in page


@pytest.mark.usefixtures("undrawn")
def test_what_some_row_lacks_is_not_shown(tmp_path: Path) -> None:
    """A method whose episodes report nothing, or an attack under which one episode did not."""
    partly = reporting(0.9, 0.8, 0.4, 0.3, 0.2)
    del partly["attacks"][0]["metrics"]
    for other in (evaluation(), partly):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        found = compared(folder, none=[reporting(0.9, 0.8, 0.4, 0.3, 0.2)], aajr=[other])
        assert found.metrics == ()
        assert "metrics" not in found.to_json()["methods"][0]
        assert "Beside the return" not in write_report([found], folder / "page.html").read_text()
