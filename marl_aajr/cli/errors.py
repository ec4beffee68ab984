"""What a person sees when something goes wrong: one line and its cure, not a traceback.

A traceback is still at hand: `--debug` shows it, and an error that is our fault leaves it in a file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import typer

MISUSE = 2
"""Exit code of everything a person can put right."""

BUG = 1
"""Exit code of everything else."""

_EXPECTED = ("EnvironmentFault", "NonFiniteError", "ProcessesLostError")
"""By name: importing these classes would import torch and the environments to report a misspelt option."""


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
