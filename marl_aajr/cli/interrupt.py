"""Ctrl-C during training: the first one asks for an orderly stop, the second one stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells have it."""


class Interrupt:
    """While entered, remembers Ctrl-C instead of raising ``KeyboardInterrupt`` in the middle of an update.

    Args:
        announce: called at the first Ctrl-C, to tell the person that it was heard.
        restore: called at the second, before the process dies, to leave the terminal usable.
    """

    def __init__(self, *, announce: Callable[[], None], restore: Callable[[], None]) -> None:
        self._announce = announce
        self._restore = restore
        self._previous: Any = None
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def __call__(self) -> bool:
        """Whether training should stop after this iteration."""
        return self.requested

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self._announce()
            return
        # The signal's own default ends the process whatever it waits for; Ray's processes end with it.
        self._restore()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
