"""Being told to stop during training: by Ctrl-C, or by the SIGTERM of schedulers such as SLURM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
