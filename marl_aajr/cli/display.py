"""How a long command shows where it is: live on a terminal, one line at a time anywhere else."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from marl_aajr.core.checks import written

if TYPE_CHECKING:
    from marl_aajr.evaluation import Outcome
    from marl_aajr.evaluation import Progress as Played
    from marl_aajr.study.progress import GridProgress, NodeProgress

FINISHING = "Finishing this iteration. Ctrl-C again stops at once."
FINISHING_STUDY = "Finishing the iterations that are running. Ctrl-C again stops at once."

_STATES = {"running": 0, "failed": 1, "impossible": 2, "waiting": 3, "interrupted": 4, "finished": 5}
"""The order of a study's table."""

_COLORS = {"running": "cyan", "failed": "red", "impossible": "red", "finished": "green"}
_LONG = 60.0
"""Seconds from which on the length of an evaluation is said beforehand."""

_ROWS = 30
"""Length of a study's table: more do not fit on a screen."""


def say(console: Console, text: str) -> None:
    """Print a text as it is, for copying: neither wrapped nor coloured."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def say_at_once(console: Console, text: str) -> None:
    """Print a line from a signal handler: past rich, which would repeat the line that it is just printing."""
    with suppress(OSError):
        os.write(console.file.fileno(), f"{text}\n".encode())


def waiting(words: str, *, console: Console) -> AbstractContextManager[object]:
    """A sign of life for seconds without progress; nothing where nobody watches."""
    return console.status(words) if console.is_interactive else nullcontext()


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(metrics: Mapping[str, Any], *, total: int, earned: str = "return") -> dict[str, str]:
    """What a person watches, in words, from a line of metrics.jsonl; what an iteration lacks is a dash."""
    speed = metrics.get("env_steps_per_second")
    mean = metrics.get("return_mean")
    after = metrics.get("episodes_after", 0) * (metrics.get("episode_length") or 0)
    left = max(total - metrics["env_steps"], 0) + after
    sides = {name: value for name, value in (metrics.get("team_returns") or {}).items() if value is not None}
    # Of sides that play against each other the sum says nothing: in a zero-sum game it is 0.
    returns = [f"{name} {written(value)}" for name, value in sides.items()]
    single = "–" if mean is None else written(mean)
    shown = {
        earned: single if len(returns) < 2 else ", ".join(returns[:3]) + (", …" if returns[3:] else ""),
        **{name: f"{value:.3g}" for name, value in list((metrics.get("metrics") or {}).items())[:3]},
        "steps/s": f"{speed:,.0f}" if speed else "–",
    }
    penalties = [
        value
        for module in metrics.get("modules", {}).values()
        for name, value in module.items()
        if name.endswith("/penalty") and value is not None
    ]
    if penalties:
        shown["penalty"] = f"{sum(penalties) / len(penalties):.3g}"
    shown["left"] = clock(left / speed) if speed else "–"
    return shown


class Interrupt:
    """While entered, remembers a request to stop instead of stopping in the middle of an update.

    Requests to stop are Ctrl-C, and the SIGTERM of schedulers such as SLURM. A second Ctrl-C ends the process
    at once. A second SIGTERM changes nothing: schedulers may send several, and SIGKILL when they have waited
    long enough. The progress tells the person that the first request was heard.
    """

    def __init__(self, progress: TrainingProgress | StudyProgress) -> None:
        self._progress = progress
        self._previous: dict[int, Any] = {}
        self._first: int | None = None

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether training should stop after this iteration."""
        return self._first is not None

    @property
    def exit_code(self) -> int:
        """Of a command that was stopped, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self._first or signal.SIGINT)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._first is None:
            self._first = number
            self._progress.finishing()
        elif number == signal.SIGINT:
            # The signal's own default ends the process whatever it waits for; Ray's processes end with it.
            self._progress.console.show_cursor(True)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


class _Bar(Progress):
    """A bar with words that stays in place within a block; nothing where nobody watches."""

    def __init__(self, console: Console, words: str = "", *, total: int | None = None, **how: Any) -> None:
        columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        super().__init__(*columns, console=console, disable=not console.is_interactive, **how)
        self._task = self.add_task(words, total=total)


class TrainingProgress(_Bar):
    """The display of a run that trains: one line for each iteration, or a bar that stays in place.

    It is called with one line of metrics.jsonl after each iteration. The heading, what is trained, is said
    once it is, so that what is refused is answered by the reason alone. `earned` is what returns are called.
    """

    def __init__(self, total: int, *, console: Console, heading: str, earned: str = "return") -> None:
        super().__init__(console, "starting", total=total)
        self._total, self._heading, self._earned = total, heading, earned

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self._begin()
        done = metrics["env_steps"]
        words = summary(metrics, total=self._total, earned=self._earned)
        if self.console.is_interactive:
            text = "  ".join(f"[dim]{name}[/dim] {value}" for name, value in words.items())
            self.update(self._task, completed=min(done, self._total), description=text)
            return
        share = min(done / self._total, 1)
        where = f"iteration {metrics['iteration']}  {done:,}/{self._total:,} env steps ({share:.0%})"
        say(self.console, "  ".join([where, *(f"{name} {value}" for name, value in words.items())]))

    def phase(self, text: str) -> None:
        """Say what begins."""
        self._begin()
        say(self.console, text)

    def finishing(self) -> None:
        """Say that Ctrl-C was heard; called by a signal handler, possibly in the middle of a line."""
        if self.console.is_interactive:
            self.update(self._task, description=FINISHING)
        else:
            say_at_once(self.console, FINISHING)

    def _begin(self) -> None:
        if self._heading:
            say(self.console, self._heading)
        self._heading = ""


class PlayingProgress(_Bar):
    """The display of episodes that are played: a bar, or a line for each row that begins."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, transient=True)
        self._what, self._foretold = "", False

    def __call__(self, played: Played) -> None:
        words = f"playing {played.what}"
        left = "" if played.left is None else f", {clock(played.left)} left"
        if played.left is not None and not self._foretold:
            self._foretold = True
            if played.left >= _LONG:
                say(self.console, f"This will take about {clock(played.left)}.")
        if not self.console.is_interactive and played.what != self._what:
            say(self.console, f"{words}, {played.done:,}/{played.total:,} episodes{left}")
        self._what = played.what
        self.update(self._task, completed=played.done, total=played.total, description=words + left)


class CertifyingProgress(_Bar):
    """The display of what is being proven: a bar, or a line for each step that begins."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, transient=True)
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self.console.is_interactive and what != self._what:
            say(self.console, what)
        self._what = what
        self.update(self._task, completed=done, total=total, description=what)


class StudyProgress:
    """The display of a study: a table of its grid or a line for each event, on a console.

    With `as_json` every event is a line of JSON on stdout instead.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self.console, self._as_json = console, as_json
        self.note = ""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        if self._as_json:
            print(json.dumps(event, ensure_ascii=False), file=sys.__stdout__, flush=True)
        elif not self.console.is_interactive:
            first = [event["time"][11:19], event["event"], event.get("node", "")]
            rest = [f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "node")]
            say(self.console, " ".join([*first, *rest]))

    def show(self, grid: GridProgress) -> AbstractContextManager[object]:
        """Keep a table of the grid on the screen within a block; nothing where nobody watches."""
        if self._as_json or not self.console.is_interactive:
            return nullcontext()
        return Live(
            get_renderable=lambda: Group(grid_table(grid), self.note),
            console=self.console,
            refresh_per_second=2,
        )

    def finishing(self) -> None:
        """Say that Ctrl-C was heard; called by a signal handler, possibly in the middle of a line."""
        self.note = FINISHING_STUDY
        if not self.console.is_interactive:
            say_at_once(self.console, FINISHING_STUDY)


def table_of(*texts: str, numbers: Iterable[str], **how: Any) -> Table:
    """An empty table: columns of texts, folded where they are too long, then of numbers, to the right."""
    table = Table(**how)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def mean_and_interval(outcome: Outcome, decimals: int) -> tuple[str, str]:
    """The mean of a row and the ends of its interval."""
    ends = [written(end, decimals) for end in (outcome.low, outcome.high) if end is not None]
    return written(outcome.mean, decimals), " to ".join(ends)


def grid_table(grid: GridProgress) -> Table:
    """A grid as a table: first what is running, then what failed, then the rest; a line sums it up."""
    counts = {state: grid.count(state) for state in ("running", "finished", "failed", "waiting")}
    words = [f"{number} {state}" for state, number in counts.items() if number]
    words += [f"{clock(grid.left)} left"] if grid.left else []
    words += [word for word in (grid.doing, grid.dashboard) if word]
    numbers = ("done", "env steps/s", "left")
    table = table_of("run", "state", numbers=numbers, caption=", ".join(words), caption_justify="left")
    rows = sorted(grid.nodes.values(), key=lambda progress: _STATES[progress.state])
    for progress in rows[:_ROWS]:
        table.add_row(*_row(progress))
    if len(rows) > _ROWS:
        table.add_row(f"and {len(rows) - _ROWS} more", "", "", "", "")
    return table


def _row(progress: NodeProgress) -> tuple[str, str, str, str, str]:
    state = progress.state
    name = progress.node.name + (f"\n{progress.error}\n{progress.log}" if progress.error else "")
    shown = f"[{_COLORS[state]}]{state}[/]" if state in _COLORS else state
    if progress.restarts:
        shown += f", {progress.restarts} restart(s)"
    running = state == "running"
    speed = f"{progress.speed:,.0f}" if running and progress.speed else ""
    took = clock(progress.seconds) if progress.seconds is not None else ""
    share = f"{progress.share:.0%}" if running else ""
    return name, shown, share, speed, clock(progress.left) if running else took
