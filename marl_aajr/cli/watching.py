"""How `marl-aajr study` shows where it is: a live table, lines where nobody watches, or JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table

from marl_aajr.cli.progress import clock

if TYPE_CHECKING:
    from marl_aajr.study.watch import Board, Progress

FINISHING = "Finishing the iterations that are running. Ctrl-C again stops at once."

_SHOWN = {"running": 0, "failed": 1, "impossible": 2, "waiting": 3, "interrupted": 4, "finished": 5}
_MARKS = {"running": "cyan", "failed": "red", "impossible": "red", "finished": "green"}
_ROWS = 30
"""Of the live table: more do not fit on a screen."""


class Watching:
    """Shows a board while entered, and hands its events on as they happen.

    Args:
        console: where the table and the lines go.
        as_json: print every event to stdout as one line of JSON; nothing else is shown then.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console, self._as_json = console, as_json
        self._live: AbstractContextManager[object] = nullcontext()
        self.note = ""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        if self._as_json:
            print(json.dumps(event, ensure_ascii=False), file=sys.__stdout__, flush=True)
        elif not self._console.is_interactive:
            words = [f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "node")]
            line = " ".join([event["time"][11:19], event["event"], event.get("node", ""), *words])
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def show(self, board: Board) -> AbstractContextManager[object]:
        """Keep a table of the board on the screen within a block; nothing where nobody watches."""
        if self._as_json or not self._console.is_interactive:
            return nullcontext()
        table = _Table(board, self)
        self._live = Live(table, console=self._console, refresh_per_second=2)
        return self._live

    def finishing(self) -> None:
        """Say that Ctrl-C was heard; called by a signal handler, possibly in the middle of a line."""
        self.note = FINISHING
        if not self._console.is_interactive:
            with suppress(OSError):
                os.write(self._console.file.fileno(), f"{FINISHING}\n".encode())

    def restore(self) -> None:
        """Leave the terminal as it was."""
        self._console.show_cursor(True)


class _Table:
    """What is running first, then what failed, then the rest, with a line that sums it up."""

    def __init__(self, board: Board, watching: Watching) -> None:
        self._board, self._watching = board, watching
        self._lock = threading.Lock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield Group(board_table(self._board), self._watching.note)


def board_table(board: Board) -> Table:
    """A board as a table."""
    counts = {state: board.count(state) for state in ("running", "finished", "failed", "waiting")}
    words = [f"{number} {state}" for state, number in counts.items() if number]
    words += [f"{clock(board.left)} left"] if board.left else []
    words += [word for word in (board.doing, board.dashboard) if word]
    table = Table(caption=", ".join(words), caption_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for heading in ("done", "env steps/s", "left"):
        table.add_column(heading, justify="right")
    rows = sorted(board.nodes.values(), key=lambda progress: _SHOWN[progress.state])
    for progress in rows[:_ROWS]:
        table.add_row(*_row(progress))
    if len(rows) > _ROWS:
        table.add_row(f"and {len(rows) - _ROWS} more", "", "", "", "")
    return table


def _row(progress: Progress) -> tuple[str, str, str, str, str]:
    state = progress.state
    name = progress.node.name + (f"\n{progress.error}\n{progress.log}" if progress.error else "")
    shown = f"[{_MARKS[state]}]{state}[/]" if state in _MARKS else state
    if progress.restarts:
        shown += f", {progress.restarts} restart(s)"
    running = state == "running"
    speed = f"{progress.speed:,.0f}" if running and progress.speed else ""
    took = clock(progress.seconds) if progress.seconds is not None else ""
    return (
        name,
        shown,
        f"{progress.share:.0%}" if running else "",
        speed,
        clock(progress.left) if running else took,
    )
