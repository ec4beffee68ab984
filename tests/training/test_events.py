from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.training.files import read_lines
from marl_aajr.training.run_directory import Event, RunDirectory, disturbed


def event(name: str, iteration: int) -> dict[str, Any]:
    return {"event": name, "iteration": iteration}


LOST: Event = "env_runners_lost"
BACK: Event = "env_runners_restarted"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], False),
        ([event("resumed", 4), event("restarted", 6)], False),
        ([event(LOST, 5)], True),
        ([event(LOST, 5), event("resumed", 4)], False),
        ([event(LOST, 5), event("resumed", 6)], True),
        ([event(LOST, 3), event(LOST, 5), event("restarted", 4)], True),
        ([event(LOST, 5), event("restarted", 4), event(LOST, 5)], True),
        ([event(BACK, 5)], True),
        ([event(LOST, 3), event(BACK, 5), event("resumed", 4)], True),
        ([event(LOST, 3), event(BACK, 5), event("resumed", 2)], False),
    ],
)
def test_numbers_are_disturbed_by_what_was_not_trained_again(
    events: list[dict[str, Any]], expected: bool
) -> None:
    assert disturbed(events) is expected


def test_an_event_is_a_line_with_its_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_event("resumed", iteration=4, repeated=1, after="running")
    run.append_event(BACK, iteration=6, count=2)
    first, second = read_lines(tmp_path / "events.jsonl")
    assert first.pop("time").endswith("+00:00")
    assert first == {"event": "resumed", "iteration": 4, "repeated": 1, "after": "running"}
    assert (second["event"], second["count"]) == (BACK, 2)
