"""Python programs in processes of their own, forked from one that has loaded torch, Ray and marl_aajr.

Loading them takes most of a short program's time. All else is as where a person starts it; Ctrl-C, and a
start with nothing loaded, are tested with processes that are not forked.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import ray

from tests.patience import PATIENCE
from tests.startup.warm_start import ask


def joining() -> dict[str, str]:
    """The environment variables by which a program joins the Ray of this process, as it would a cluster."""
    address = ray.get_runtime_context().gcs_address
    return {"RAY_ADDRESS": address, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}


class Forked:
    """A program that has been started.

    Args:
        words: what follows `python` on a command line: `-m MODULE`, `-c PROGRAM` or a file, and arguments.
        cwd: the folder that it runs in.
        **extra: environment variables besides those of this process.
    """

    def __init__(self, words: Sequence[str | Path], *, cwd: Path, **extra: str) -> None:
        self.words = [str(word) for word in words]
        self._said = TemporaryDirectory()
        self._files = [Path(self._said.name) / name for name in ("out", "err")]
        with open(os.devnull) as nothing, self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            files = [file.fileno() for file in (nothing, out, err)]
            self._connection = _asked(self.words, str(cwd), os.environ | extra, files)

    def finish(self, timeout: float = 200) -> CompletedProcess[str]:
        """Wait for its end; one that ends without a word has been killed."""
        self._connection.settimeout(timeout)
        with self._connection:
            code = int(self._connection.recv(8) or -signal.SIGKILL)
        out, err = (file.read_text() for file in self._files)
        self._said.cleanup()
        return CompletedProcess(self.words, code, out, err)


def _asked(words: list[str], cwd: str, environment: dict[str, str], files: list[int]) -> socket.socket:
    """As soon as the process that forks them has loaded everything."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(os.environ["WARM_START"], words, cwd, environment, files)
        except FileNotFoundError:
            assert time.monotonic() < deadline, "the process of tests/startup is not there"
            time.sleep(0.1)
