"""Commands that end early: by an error, or because somebody asked them to stop.

An error is one line and its cure, not a traceback. A traceback is still at hand: `--debug` shows it, and an
error that is our fault leaves it in a file. Requests to stop are Ctrl-C, and the SIGTERM of schedulers such
as SLURM.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer

MISUSE = 2
"""Exit code of everything a person can put right."""

BUG = 1
"""Exit code of everything else."""

_EXPECTED = ("EnvironmentFault", "NonFiniteError", "ProcessesLostError")
"""By name: importing these classes would import torch and the environments to report a misspelt option."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def report(error: Exception, *, debug: bool) -> int:
    """Print an error to stderr and return the exit code that belongs to it."""
    error = _root(error)
    if debug:
        traceback.print_exception(error)
    lines = _expected(error)
    if lines is not None:
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        return MISUSE
    summary = " ".join(f"{type(error).__name__}: {error}".split())
    where = "" if debug else f"; traceback in {_log(error)} (or run it again with --debug)"
    print(f"error: unexpected {summary[:300]}{where}", file=sys.stderr)
    return BUG


def _root(error: Exception) -> Exception:
    """The error itself where Ray wraps one that was raised in another process."""
    cause = getattr(error, "cause", None)
    return cause if type(error).__module__.startswith("ray.") and isinstance(cause, Exception) else error


def _expected(error: Exception) -> list[str] | None:
    """The lines to print for an error that a person can put right; None for any other."""
    if isinstance(error, typer.TyperException):
        return [f"{error.format_message()} (-h lists what there is)"]
    if isinstance(error, OSError):
        return [f"{error.strerror}: {error.filename}"] if error.filename else None
    if isinstance(error, ValueError) or type(error).__name__ in _EXPECTED:
        return str(error).splitlines() or [type(error).__name__]
    return None


def _log(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="marl-aajr-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    return path


class Interrupt:
    """While entered, remembers a request to stop instead of stopping in the middle of an update.

    A second Ctrl-C ends the process at once. A second SIGTERM changes nothing: schedulers may send several,
    and SIGKILL when they have waited long enough.

    Args:
        announce: called at the first request, to tell the person that it was heard.
        restore: called before the process dies at once, to leave the terminal usable.
    """

    def __init__(self, *, announce: Callable[[], None], restore: Callable[[], None]) -> None:
        self._announce = announce
        self._restore = restore
        self._previous: dict[int, Any] = {}
        self._first: int | None = None

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
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
            self._announce()
        elif number == signal.SIGINT:
            # The signal's own default ends the process whatever it waits for; Ray's processes end with it.
            self._restore()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
