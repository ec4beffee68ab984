"""Processes that play copies of an environment beside their parent, in memory that they share with it.

They are new interpreters, not forks: a fork would take the locks of torch's and Ray's threads along, and
Ray's sockets. What they play is sent as Ray sends it, by cloudpickle, so that a script needs no
`if __name__ == "__main__"`. They import torch only where the environment does.

The memory is a file without a name, and the end of a parent is a signal to its children, by a pipe that
closes: whatever ends the parent, and whatever they do then, nothing is left.
"""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from socket import socketpair
from typing import Any, NoReturn

import cloudpickle
import numpy as np

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.game_agents import METRICS, reported
from marl_aajr.rollout.game_copies import CopySpaces, GameCopies

_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import sys; sys.path[:] = {path}; "
    "from marl_aajr.rollout.game_process import serve; serve({link}, {life}, idle={idle})"
)
"""Ctrl-C reaches all processes of a terminal; the parent decides what it means."""

_ALONE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
_PATIENCE_SECONDS, _IDLE_SECONDS = 5.0, 60.0


class SharedRecords:
    """`[E]` records in memory without a name; `handle` opens it in another process."""

    def __init__(self, dtype: np.dtype[Any], count: int, handle: int | None = None) -> None:
        size = dtype.itemsize * count
        if handle is None:
            handle = _nameless()
            os.truncate(handle, size)
        self.handle = handle
        self.array = np.frombuffer(mmap.mmap(handle, size), dtype, count)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("copies")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class GameProcess:
    """Another process that plays copies of an environment, one batch after the other."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        life, self._life = os.pipe()
        with theirs, open(life, closefd=True):
            path, link = [*map(str, sys.path)], theirs.fileno()
            code = _CODE.format(path=path, link=link, life=life, idle=_IDLE_SECONDS)
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[link, life],
                env=os.environ | _ALONE,
                stdin=subprocess.DEVNULL,
            )
        self._link = Connection(ours.detach())
        self._owner, self._open_questions = os.getpid(), 0
        self._label = ""

    @property
    def pid(self) -> int:
        """Its number, for messages."""
        return self._child.pid

    @property
    def usable(self) -> bool:
        """Whether it lives, has answered everything, and is no other process's."""
        return self._owner == os.getpid() and not self._open_questions and self._child.poll() is None

    def build(self, code: bytes, records: SharedRecords, copies: range, name: str) -> None:
        """Ask for copies of an environment: `code` is its pickled specification and spaces."""
        self._label = f"environment {name}, copies {copies[0]} to {copies[-1]}"
        here = ([*sys.path], {**os.environ, **_ALONE}, os.getcwd())
        self.ask("build", code, here, len(records.array), copies)
        send_handle(self._link, records.handle, self._child.pid)

    def ask(self, what: str, *args: Any) -> None:
        """Call a method of its `GameCopies`; `answer` waits for what comes of it."""
        try:
            self._link.send((what, args))
        except OSError:
            self._lost()
        self._open_questions += 1

    def answer(self) -> Any:
        """The result of what was asked first; an error is raised here, with its traceback in a note.

        Raises:
            EnvironmentFault: The process was killed, or has ended.
        """
        try:
            fine, result = self._link.recv()
        except (EOFError, OSError):
            self._lost()
        self._open_questions -= 1
        if not fine:
            raise result
        return result

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._owner != os.getpid():
            return
        self._link.close()
        os.close(self._life)
        try:
            self._child.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _lost(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_PATIENCE_SECONDS)
        code = self._child.poll()
        how = "does not answer" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        more = ": is there too little memory?" if code == -signal.SIGKILL else ""
        raise EnvironmentFault(f"{self._label}: process {self.pid}, which plays them, {how}{more}")


_idle: dict[GameProcess, float] = {}
"""Processes that wait for something to play, and since when.

A start takes up to a second, and runs build their environments anew at every checkpoint.
"""


def borrowed(count: int) -> list[GameProcess]:
    """Processes that play nothing."""
    soon = time.monotonic() - _IDLE_SECONDS / 2  # not one that ends itself now
    ready = [process for process, since in _idle.items() if process.usable and since > soon]
    _end(process for process in [*_idle] if process not in ready)
    for process in ready[:count]:
        del _idle[process]
    return [*ready[:count], *(GameProcess() for _ in range(count - len(ready)))]


def give_back(processes: Sequence[GameProcess]) -> None:
    """Close what these have played, and keep them for others; end those that have not answered."""
    for process in processes:
        with suppress(Exception):
            if process.usable:
                process.ask("close")
                process.answer()
    kept = [process for process in processes if process.usable]
    room = max(0, (os.cpu_count() or 1) - len(_idle))
    _idle.update(dict.fromkeys(kept[:room], time.monotonic()))
    _end(process for process in processes if process not in kept[:room])


def _end(processes: Iterable[GameProcess]) -> None:
    for process in processes:
        _idle.pop(process, None)
        process.end()


@atexit.register
def _end_idle() -> None:
    _end([*_idle])


class _OthersCopies(GameCopies):
    """Copies that are played for another process."""

    def reset(self, seed: int) -> None:
        # Some environments draw from these, which the parent has seeded for itself.
        number = int(np.random.SeedSequence(seed, spawn_key=(self.first,)).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(number)
        super().reset(seed)

    def step(self, given: Sequence[str], keep_states: bool) -> list[dict[str, Any]]:
        """Of the infos, only metrics of episodes are sent; nothing where there are none."""
        told = super().step(given, keep_states)
        metrics = [reported(infos) if self._over[e] else {} for e, infos in enumerate(told)]
        return [{"": {METRICS: found}} if found else {} for found in metrics] if any(metrics) else []


def serve(handle: int, life: int, *, idle: float) -> None:
    """Answer the parent until it is gone, or has had nothing to play for `idle` seconds: a child's life."""
    from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl  # which Windows lacks

    # The signal that this pipe closes ends even a process in the middle of a step.
    fcntl(life, F_SETOWN, os.getpid())
    fcntl(life, F_SETFL, fcntl(life, F_GETFL) | os.O_ASYNC)
    warnings.simplefilter("ignore")  # the parent, which builds the same environment, has been warned
    link = Connection(handle)
    copies: GameCopies | None = None
    with suppress(EOFError, OSError):
        while copies is not None or link.poll(idle):
            what, args = link.recv()
            try:
                if what == "build":
                    copies, answer = _built(recv_handle(link), *args), None
                else:
                    answer = getattr(copies, what)(*args)
                copies = None if what == "close" else copies
            except Exception as error:
                link.send((False, _sendable(error)))
            else:
                link.send((True, answer))


def _built(handle: int, code: bytes, here: Any, count: int, copies: range) -> GameCopies:
    sys.path[:], environment, folder = here
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        spec, arrays = cloudpickle.loads(code)
        shared = SharedRecords(arrays.records, count, handle)
    finally:
        os.close(handle)
    return _OthersCopies(spec, arrays, shared.array[copies.start : copies.stop], first=copies.start)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that another process can read."""
    there = f"In process {os.getpid()}, which plays these copies:\n{traceback.format_exc()}"
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(there)
    return error


def packed(spec: Any, arrays: CopySpaces) -> bytes:
    """A specification and its spaces for `GameProcess.build`.

    Raises:
        ValueError: They cannot be pickled.
    """
    try:
        code: bytes = cloudpickle.dumps((spec, arrays))
    except Exception as error:  # what refuses to be pickled does so in its own way
        raise ValueError(
            f"expected an environment that can be sent to other processes, got {spec.name} "
            f"({type(error).__name__}: {error}); name a function at the top of a module instead "
            "(my_package.my_env:make), give it plain arguments, or play it in 1 process"
        ) from error
    return code
