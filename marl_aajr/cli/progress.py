"""How a long command shows where it is: a live bar on a terminal, one line at a time anywhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

if TYPE_CHECKING:
    from marl_aajr.evaluation import Progress as Played


FINISHING = "Finishing this iteration. Ctrl-C again stops at once."


class TrainingProgress(Protocol):
    """Shown while a run trains; called with one line of metrics.jsonl after each iteration."""

    def __enter__(self) -> TrainingProgress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, metrics: Mapping[str, Any]) -> None: ...

    def phase(self, text: str) -> None:
        """Say what begins."""

    def finishing(self) -> None:
        """Say that Ctrl-C was heard; called by a signal handler, possibly in the middle of a line."""

    def restore(self) -> None:
        """Leave the terminal as it was."""


def training_progress(
    total: int, *, console: Console, heading: str, earned: str = "return"
) -> TrainingProgress:
    """The display that fits where the output goes.

    Args:
        total: environment steps of the whole run.
        console: where to show it.
        heading: what is trained; said once it is, so that what is refused is answered by the reason alone.
        earned: what the returns are called.
    """
    display = _Live if console.is_interactive else _Lines
    return display(total, console, heading, earned)


def waiting(words: str, *, console: Console) -> AbstractContextManager[object]:
    """A sign of life for seconds without progress; nothing where nobody watches."""
    return console.status(words) if console.is_interactive else nullcontext()


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(metrics: Mapping[str, Any], *, total: int, earned: str = "return") -> dict[str, str]:
    """What a person watches, in words; what an iteration lacks is a dash.

    Args:
        metrics: one line of metrics.jsonl.
        total: environment steps of the whole run.
        earned: what the returns are called.
    """
    speed = metrics.get("env_steps_per_second")
    mean = metrics.get("return_mean")
    left = max(total - metrics["env_steps"], 0)
    sides = {name: value for name, value in (metrics.get("team_returns") or {}).items() if value is not None}
    # Of sides that play against each other the sum says nothing: in a zero-sum game it is 0.
    returns = [f"{name} {value:.1f}" for name, value in sides.items()]
    single = "–" if mean is None else f"{mean:.1f}"
    shown = {
        earned: single if len(returns) < 2 else ", ".join(returns[:3]) + (", …" if returns[3:] else ""),
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


class PlayingProgress:
    """While episodes are played: a bar on a terminal, elsewhere a line for each row that begins."""

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_interactive
        )
        self._task = self._progress.add_task("", total=None)
        self._console, self._what = console, ""

    def __enter__(self) -> PlayingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, played: Played) -> None:
        if not self._console.is_interactive and played.what != self._what:
            _say(self._console, f"playing {played.what}, {played.done:,}/{played.total:,} episodes")
        self._what = played.what
        self._progress.update(
            self._task, completed=played.done, total=played.total, description=f"playing {played.what}"
        )


class _Headed:
    """Lines that stay: what is trained, and each phase of it."""

    def __init__(self, total: int, console: Console, heading: str, earned: str) -> None:
        self._total, self._console, self._heading, self._earned = total, console, heading, earned

    def phase(self, text: str) -> None:
        self._begin()
        _say(self._console, text)

    def _words(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        return summary(metrics, total=self._total, earned=self._earned)

    def _begin(self) -> None:
        if self._heading:
            _say(self._console, self._heading)
        self._heading = ""


class _Lines(_Headed):
    """One line per iteration."""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self._begin()
        done = metrics["env_steps"]
        share = min(done / self._total, 1)
        words = "  ".join(f"{name} {text}" for name, text in self._words(metrics).items())
        line = f"iteration {metrics['iteration']}  {done:,}/{self._total:,} env steps ({share:.0%})  {words}"
        _say(self._console, line)

    def finishing(self) -> None:
        # Past rich, which would print the line again that it is just printing.
        with suppress(OSError):
            os.write(self._console.file.fileno(), f"{FINISHING}\n".encode())

    def restore(self) -> None:
        pass


class _Live(_Headed):
    """A bar that stays in place."""

    def __init__(self, total: int, console: Console, heading: str, earned: str) -> None:
        super().__init__(total, console, heading, earned)
        columns = (BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("starting", total=total)

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self._begin()
        words = "  ".join(f"[dim]{name}[/dim] {text}" for name, text in self._words(metrics).items())
        self._progress.update(self._task, completed=min(metrics["env_steps"], self._total), description=words)

    def finishing(self) -> None:
        self._progress.update(self._task, description=FINISHING)

    def restore(self) -> None:
        self._console.show_cursor(True)


def _say(console: Console, line: str) -> None:
    """Print a line as it is: neither wrapped nor coloured."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)
