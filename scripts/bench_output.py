"""How the benchmarks say what they have found, and on which machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any, Literal

Bars = Mapping[str, tuple[Literal["at least", "at most"], float]]
"""What a figure has to reach, by its name."""


def machine(threads: int) -> str:
    import torch

    return (
        f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, {threads} torch thread(s)"
    )


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def judge(figures: Mapping[str, Any], bars: Bars) -> None:
    """A line for each figure that has something to reach."""
    width = max((len(name) for name in bars if name in figures), default=0)
    for name, (side, bar) in bars.items():
        if name in figures:
            value = figures[name]
            reached = value >= bar if side == "at least" else value <= bar
            say(f"{name:<{width}} {value:>8.2f}   ({side} {bar:g}: {'reached' if reached else 'MISSED'})")


def write_json(target: str, figures: Mapping[str, Any]) -> None:
    text = json.dumps(figures, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)


def progress(line: str) -> None:
    """Shows a line that the next one replaces; nothing where nobody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
