"""Progress on a terminal and elsewhere, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from marl_aajr.cli.display import FINISHING, Interrupt, PlayingProgress, TrainingProgress, clock, summary
from marl_aajr.evaluation import Progress as Played
from tests.patience import PATIENCE

METRICS: dict[str, Any] = {
    "iteration": 3,
    "env_steps": 12_000,
    "return_mean": -71.234,
    "env_steps_per_second": 1500.0,
    "modules": {"a": {"aajr/penalty": 0.1, "policy_loss": 1.0}, "b": {"aajr/penalty": 0.3}},
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (-5, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_summary_averages_the_penalty_over_modules_and_says_what_is_left() -> None:
    shown = summary(METRICS, total=102_000)
    assert shown == {"return": "-71.2", "steps/s": "1,500", "penalty": "0.2", "left": "1:00"}


def test_summary_has_the_return_of_each_side_where_there_are_several() -> None:
    """Of a zero-sum game the sum would be 0, whoever wins."""
    sides = {"team_returns": {"first": 0.25, "second": -0.25}, "return_mean": 0.0}
    assert summary(METRICS | sides, total=102_000)["return"] == "first 0.250, second -0.250"
    alone = {"team_returns": {"team": -71.234}}
    assert summary(METRICS | alone, total=102_000)["return"] == "-71.2"
    many = {"team_returns": dict.fromkeys("abcd", 1.0)}
    assert summary(METRICS | many, total=102_000)["return"] == "a 1.00, b 1.00, c 1.00, …"


def test_summary_calls_the_returns_what_they_are() -> None:
    assert next(iter(summary(METRICS, total=1, earned="adversary's return"))) == "adversary's return"


def test_summary_of_an_iteration_without_episodes_or_penalty() -> None:
    bare: dict[str, Any] = {
        "iteration": 1,
        "env_steps": 4000,
        "return_mean": None,
        "env_steps_per_second": None,
        "modules": {"a": {}},
    }
    assert summary(bare, total=1000) == {"return": "–", "steps/s": "–", "left": "–"}


def test_summary_counts_the_episodes_that_are_played_after_training() -> None:
    metrics = {**METRICS, "episodes_after": 300, "episode_length": 25.0}
    assert summary(metrics, total=12_000)["left"] == "0:05"


def test_elsewhere_each_iteration_is_one_plain_line() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40)
    with TrainingProgress(24_000, console=console, heading="what, where [and how]") as progress:
        assert out.getvalue() == ""
        progress(METRICS)
        progress.phase("Judging")
        progress(METRICS | {"iteration": 4, "env_steps": 25_000})
    heading, first, phase, second = out.getvalue().splitlines()
    assert (heading, phase) == ("what, where [and how]", "Judging")
    assert (
        first
        == "iteration 3  12,000/24,000 env steps (50%)  return -71.2  steps/s 1,500  penalty 0.2  left 0:08"
    )
    assert "(100%)" in second


def test_on_a_terminal_the_bar_stays_in_place_and_the_cursor_comes_back() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, force_interactive=True)
    with TrainingProgress(24_000, console=console, heading="what, where") as progress:
        progress.phase("Judging")
        progress(METRICS)
    text = out.getvalue()
    assert text.index("what, where") < text.index("Judging") < text.index("50%")
    assert "-71.2" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_ctrl_c_in_the_middle_of_a_line_does_not_print_the_line_twice(tmp_path: Path) -> None:
    class Interrupted(io.FileIO):
        """A terminal that gets Ctrl-C while the first line is being written to it."""

        def write(self, data: Any, /) -> int:
            if not interrupt():
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(data)

    path = tmp_path / "terminal"
    with io.TextIOWrapper(Interrupted(path, "w"), write_through=True) as terminal:
        progress = TrainingProgress(24_000, console=Console(file=terminal, width=200), heading="")
        with Interrupt(progress) as interrupt, progress:
            progress(METRICS)
    assert path.read_text().count("iteration 3") == 1
    assert path.read_text().count(FINISHING) == 1


def test_an_evaluation_is_a_line_for_each_row_that_begins() -> None:
    out = io.StringIO()
    with PlayingProgress(Console(file=out, width=20)) as progress:
        for done, what in enumerate(("clean", "clean", "pgd 0.1", "pgd 0.1", "fgsm 0.2")):
            progress(Played(done, 2000, what))
    assert out.getvalue().splitlines() == [
        "playing clean, 0/2,000 episodes",
        "playing pgd 0.1, 2/2,000 episodes",
        "playing fgsm 0.2, 4/2,000 episodes",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_request_is_remembered_and_the_handlers_go_away(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    path = tmp_path / "terminal"
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with path.open("w") as terminal:
        progress = TrainingProgress(1, console=Console(file=terminal, width=200), heading="")
        with Interrupt(progress) as interrupt:
            assert not interrupt()
            os.kill(os.getpid(), number)
            assert interrupt()
            os.kill(os.getpid(), signal.SIGTERM)  # schedulers may send several
    assert (path.read_text().splitlines(), interrupt.exit_code) == ([FINISHING], code)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_interrupt_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\n"
        "from rich.console import Console\n"
        "from marl_aajr.cli.display import Interrupt, StudyProgress\n"
        "progress = StudyProgress(Console(force_terminal=True), as_json=False)\n"
        "with Interrupt(progress):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "\x1b[?25h"  # the cursor is shown again
