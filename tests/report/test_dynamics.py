"""Other dynamics on the page: returns with other arguments of the environment, in a table and as curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.report import compare, write_report
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.dynamics import dynamics, dynamics_curves
from marl_aajr.report.style import Legend
from tests.report.factory import cells, write_method


def compared(tmp_path: Path, **methods: list[dict[str, dict[Any, float]]]) -> tuple[Comparison, list[Path]]:
    """Runs of methods with returns by argument and value, the same in every episode."""
    paths: list[Path] = []
    for name, runs in methods.items():
        written = write_method(tmp_path, name, clean=[-40.0 - i for i in range(len(runs))])
        for path, returns in zip(written, runs, strict=True):
            for file in (path / "evaluations").glob("*.json"):
                content = json.loads(file.read_text())
                for rows in content["results"]:
                    rows["threats"] = [
                        {
                            "kind": "dynamics",
                            "name": argument,
                            "form": "value",
                            "settings": {argument: value},
                            "mean": mean,
                            "low": mean - 1,
                            "high": mean + 1,
                            "returns": [mean] * content["episodes"],
                        }
                        for argument, values in returns.items()
                        for value, mean in values.items()
                    ]
                file.write_text(json.dumps(content))
        paths += written
    return compare(paths), paths


@pytest.mark.usefixtures("undrawn")
def test_returns_means_and_the_worst_value_of_each_argument(tmp_path: Path) -> None:
    plain = [{"mass": {2: -60.0, 0.5: -30.0}}, {"mass": {0.5: -34.0, 2: -52.0, 4: -90.0}}]
    comparison, paths = compared(tmp_path, none=plain, aajr=[{"map": {"maze": -20.0}}, {}])
    blocks = dynamics(comparison)
    assert [(block.title, [line.header for line in block.lines]) for block in blocks] == [
        ("mass", ["0.5", "2", "4", "mean of these", "worst of these"]),
        ("map", ["maze", "mean of these", "worst of these"]),
    ]
    first, second = cells(blocks, "mass", "0.5")
    assert (first.main, first.note, second.main) == ("−32", "", "—")
    first, _ = cells(blocks, "mass", "4")
    assert (first.main, first.note) == ("−90", "1 of 2 runs")
    assert cells(blocks, "mass", "mean of these")[0].main == "−44"
    worst = cells(blocks, "mass", "worst of these")[0]
    assert (worst.main, worst.note) == ("−56", "at 2")
    page = write_report(paths, tmp_path / "page.html").read_text()
    assert page.count("<h3>Other dynamics</h3>") == 1
    assert "Return against mass." in page
    looks = Legend.of([comparison]).of_rows(comparison.rows)
    (panel,) = dynamics_curves(comparison, looks, key="k")
    label = comparison.rows[0].method.label
    assert panel.alt == f"Return against mass. {label} −32 at 0.5, −56 at 2."


@pytest.mark.parametrize("change", [{"seed": 5}, {"episodes": 10}, {"num_envs": 3}])
def test_other_episodes_are_not_shown_beside_these(tmp_path: Path, change: dict[str, int]) -> None:
    """What was played on other seeds cannot be compared with the clean returns of the page."""
    comparison, (path,) = compared(tmp_path, none=[{"mass": {1: -30.0, 2: -60.0}}])
    assert dynamics(comparison)
    (file,) = (path / "evaluations").glob("*.json")
    content = json.loads(file.read_text())
    threats = content["results"][0].pop("threats")
    file.write_text(json.dumps(content))
    count = change.get("episodes", content["episodes"])

    def fewer(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "returns": [row["mean"]] * count}

    clean = content["results"][0]["clean"]
    other = {"actions": "greedy", "clean": fewer(clean), "threats": [fewer(row) for row in threats]}
    (path / "evaluations" / "zz.json").write_text(json.dumps({**content, **change, "results": [other]}))
    assert dynamics(compare([path])) == ()


@pytest.mark.usefixtures("undrawn")
def test_nothing_varied_nothing_shown(tmp_path: Path) -> None:
    comparison, paths = compared(tmp_path, none=[{}])
    assert dynamics(comparison) == ()
    assert "Other dynamics" not in write_report(paths, tmp_path / "page.html").read_text()
