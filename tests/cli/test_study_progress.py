"""What a person sees of a study that is under way."""

from __future__ import annotations

import io
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from marl_aajr.cli.display import FINISHING_STUDY, StudyProgress, grid_table
from marl_aajr.cli.study import _command
from marl_aajr.study.driver import prepare
from marl_aajr.study.progress import GridProgress, NodeProgress
from tests.study.files import write_study

A, B, C, D, E = (f"simple_spread_v3-none-s{seed}" for seed in range(5))


@pytest.fixture
def grid(tmp_path: Path) -> GridProgress:
    """Of five runs of 400 environment steps one is done, one has failed and two run, a minute each."""
    plan = prepare(write_study(tmp_path, seeds=[*range(5)], evaluation={"suite": None}), out=tmp_path / "out")
    nodes = {name: NodeProgress(node, expected=100.0) for name, node in plan.nodes.items()}
    grid = GridProgress(nodes, lambda event: None, slots=2, dashboard="http://127.0.0.1:8265")
    grid.ended(A, "finished", seconds=95.0)
    grid.started(B)
    grid.ended(B, "failed", error="ValueError: no licence", log="out/logs/B.log")
    grid.started(C)
    grid.restarted(C, error="ActorDiedError", log="out/logs/C.log")
    for name in (C, D):
        grid.started(name)
        nodes[name].since = time.monotonic() - 60
    grid.advanced(C, {"env_steps": 300, "env_steps_per_second": 12_345.6})
    return grid


def shown(thing: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The table's rows by run."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0].startswith("simple")}


def test_time_left_is_measured_where_it_can_be_and_divided_among_slots(grid: GridProgress) -> None:
    left = {name: round(progress.left) for name, progress in grid.nodes.items()}
    assert left == {A: 0, B: 0, C: 20, D: 100, E: 100}  # three quarters in a minute; nothing yet; not begun
    assert round(grid.left) == (20 + 100 + 100) / 2


def test_time_left_counts_the_tuning_before_the_runs(grid: GridProgress) -> None:
    grid.tuning = 600.0
    assert round(grid.left) == (600 + 20 + 100 + 100) / 2


def test_the_command_to_go_on_works_and_hides_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://key:secret@bucket/a?scheme=http"
    command = _command(Path("my study.yaml"), out=None, only="*-s0", set=["seeds=[0]", f"storage={uri}"])
    assert (
        command
        == "marl-aajr study 'my study.yaml' --only '*-s0' --set 'seeds=[0]' --set \"storage=$STORAGE\""
    )
    monkeypatch.setenv("STORAGE", uri)
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {command}"], text=True).splitlines()
    assert words[-1] == f"storage={uri}"
    plain = "storage=s3://bucket/a"
    assert _command(Path("a.yaml"), set=[plain]) == f"marl-aajr study a.yaml --set {plain}"


def test_time_left_leaves_out_the_warm_start_and_counts_the_evaluation(grid: GridProgress) -> None:
    now, one = time.monotonic(), grid.nodes[D]
    numbers = {"env_steps_per_second": 10.0, "episodes_after": 40, "episode_length": 25}
    grid.advanced(D, {**numbers, "env_steps": 100})  # after a minute
    one.first = (now - 10, 0.25)
    grid.advanced(D, {**numbers, "env_steps": 300})
    assert round(one.left) == 5 + 100
    grid.advanced(D, {**numbers, "env_steps": 400})
    assert round(one.left) == 100


def test_what_runs_comes_first_with_its_speed_and_the_time_it_will_take(grid: GridProgress) -> None:
    assert list(rows(shown(grid_table(grid))).items()) == [
        (C, ["running, 1 restart(s)", "75%", "12,346", "0:20"]),
        (D, ["running", "0%", "", "1:40"]),
        (B, ["failed", "", "", ""]),
        (E, ["waiting", "", "", ""]),
        (A, ["finished", "", "", "1:35"]),
    ]


def test_a_failure_says_why_and_where_to_read_more(grid: GridProgress) -> None:
    text = shown(grid_table(grid))
    assert "ValueError: no licence" in text
    assert "out/logs/B.log" in text


def test_one_line_sums_it_up_and_names_the_dashboard(grid: GridProgress) -> None:
    last = shown(grid_table(grid)).splitlines()[-1]
    counts = "2 running, 1 finished, 1 failed, 1 waiting"
    assert last.strip() == f"{counts}, 1:50 left, http://127.0.0.1:8265"


def test_more_than_a_screen_is_counted(tmp_path: Path) -> None:
    seeds = [*range(40)]
    plan = prepare(write_study(tmp_path, seeds=seeds, evaluation={"suite": None}), out=tmp_path / "out")
    grid = GridProgress({name: NodeProgress(node) for name, node in plan.nodes.items()}, lambda event: None)
    text = shown(grid_table(grid))
    assert len(rows(text)) == 30
    assert "and 10 more" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_is_live_on_a_terminal_and_absent_elsewhere(grid: GridProgress, terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal, force_interactive=terminal)
    progress = StudyProgress(console, as_json=False)
    with progress.show(grid):
        progress.finishing()
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert ("1 waiting" in text, FINISHING_STUDY in text) == (terminal, terminal)
