"""A process that has loaded torch and all else that Ray's workers load but Ray itself, and forks them.

Loading all of it takes a worker of RLlib two seconds. While Ray is loaded, it reads its settings and the job
that a worker is of: what is asked for repeatedly with the same of these is forked by a process in between
that has loaded Ray with them. `python warm_start.py FOLDER PID` is the first process; it serves until the
process PID has ended. Commands of marl_aajr are forked as well where the environment says `WARM_COMMANDS`,
and what `tests.forked` asks for; Ctrl-C only ends them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ALL = (
    "marl_aajr.training.trainer",
    "marl_aajr.study.driver",
    "marl_aajr.cli.app",
    "ray.rllib.algorithms.ppo",
)
WORKER = "/ray/_private/workers/default_worker.py"
READ_LATER = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_CLIENT_MODE", "RAY_LD_PRELOAD_ON_WORKERS", "RAY_TMPDIR")
"""Settings that are not read while Ray is loaded."""

WORTH_LOADING = 3
"""So many workers of one job on one node; for a program, which is of no job, it always is."""

LOADED = 6
"""The most processes that have loaded Ray at a time, of which the one goes that was asked longest ago."""

SET_SIGNAL = 10
"""Linux's F_SETSIG."""


def address(folder: str) -> str:
    """The socket of the process that is as this one but for what is loaded."""
    same = (sys.prefix, os.environ.get("PYTHONPATH"), os.environ.get("OMP_NUM_THREADS"))
    return f"{folder}/{zlib.crc32(repr(same).encode()):x}"


def hand_over(folder: str) -> None:
    """Where this process is to be a worker of Ray's, or a command, have one forked, and end with it."""
    words = [word for word in sys.orig_argv[1:] if word != "-u"]
    command = words[:2] == ["-m", "marl_aajr"] and "WARM_COMMANDS" in os.environ
    if not command and not (words and words[0].endswith(WORKER)):
        return
    try:
        connection = ask(folder, words, os.getcwd(), os.environ, [0, 1, 2])
    except OSError:
        return
    os._exit(int(connection.recv(8) or 1))


def ask(
    folder: str, words: Sequence[str], cwd: str, environment: Mapping[str, str], files: Sequence[int]
) -> socket.socket:
    """Have one forked: its exit code comes by the socket, with whose end it is killed."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address(folder))
    asked = {"words": words, "cwd": cwd, "environment": dict(environment)}
    send(connection, json.dumps(asked).encode(), files)
    return connection


def send(to: socket.socket, text: bytes, files: Sequence[int]) -> None:
    """A message, and files."""
    socket.send_fds(to, [len(text).to_bytes(8, "big")], files)
    to.sendall(text)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """What was sent; nothing, where nobody sends any more."""
    size, files, *_ = socket.recv_fds(connection, 8, 4)
    left, text = int.from_bytes(size, "big"), b""
    # Nothing of the message that may be behind it, and no more once the other end is gone.
    while left > len(text) and (part := connection.recv(left - len(text))):
        text += part
    return (text if len(text) == left else b""), files


def serve(folder: str, owner: str) -> None:
    """Fork for whoever connects, or have it forked, until the owner ends."""
    try:
        alive = os.pidfd_open(int(owner))
    except ProcessLookupError:
        return
    load_others()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    loaded: dict[str, socket.socket] = {}
    count: Counter[str] = Counter()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address(folder)}.new")
        listener.listen(100)
        Path(f"{address(folder)}.new").rename(address(folder))
        while alive not in select.select([listener.fileno(), alive], [], [])[0]:
            connection = listener.accept()[0]
            text, files = receive(connection)
            if not text:
                continue
            settings = read_while_loading(json.loads(text)["environment"])
            key = repr(settings)
            count[key] += 1
            if key not in loaded and count[key] >= (WORTH_LOADING if "RAY_JOB_ID" in settings else 1):
                loaded[key], requests = socket.socketpair()
                if os.fork() == 0:
                    for other in (listener, connection, *loaded.values()):
                        other.close()
                    serve_loaded(requests, settings)
                requests.close()
            if key in loaded:
                loaded[key] = loaded.pop(key)
                send(loaded[key], text, [connection.fileno(), *files])
            elif os.fork() == 0:
                for other in (listener, *loaded.values()):
                    other.close()
                become(connection, text, files)
            forget(connection, files)
            while len(loaded) > LOADED:
                loaded.pop(next(iter(loaded))).close()


def read_while_loading(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are of importance while Ray is loaded."""
    named = {name: value for name, value in environment.items() if name.startswith(("RAY_", "TUNE_"))}
    return {name: named[name] for name in sorted(named) if name not in READ_LATER}


def serve_loaded(requests: socket.socket, settings: Mapping[str, str]) -> None:
    """Load everything with these settings, and fork for whoever is passed on."""
    os.environ.update(settings)
    gc.disable()
    for name in ALL:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    while (message := receive(requests))[0]:
        text, (connected, *files) = message
        connection = socket.socket(fileno=connected)
        if os.fork() == 0:
            requests.close()
            become(connection, text, files)
        forget(connection, files)
    os._exit(0)


def forget(connection: socket.socket, files: Sequence[int]) -> None:
    """They are another process's now."""
    connection.close()
    for file in files:
        os.close(file)


def load_others() -> None:
    """Import all but Ray and what needs it; a process that ends tells what that is."""
    reads, writes = os.pipe()
    gc.disable()
    if os.fork() == 0:
        for name in ALL:
            importlib.import_module(name)
        others = [name for name in sys.modules if not name.startswith(("ray", "marl_aajr", "__", "tests"))]
        os.write(writes, "\n".join(others).encode())
        os._exit(0)
    os.close(writes)
    with open(reads, encoding="utf-8") as told:
        for name in told.read().split("\n"):
            with contextlib.suppress(Exception):  # Some are there only after Ray has made them.
                importlib.import_module(name)
    gc.freeze()
    gc.enable()


def become(connection: socket.socket, text: bytes, files: Sequence[int]) -> None:
    """Run what is asked for as if it had been started where it was asked for."""
    import numpy as np  # Those that hand over need none.

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    np.random.seed()  # noqa: NPY002 - anywhere else, too, no two processes draw the same
    code = 1
    try:
        asked = json.loads(text)
        take_over(connection, files, asked)
        run_as_main(asked["words"])
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        connection.sendall(str(code).encode())
    os._exit(code)


def take_over(connection: socket.socket, files: Sequence[int], asked: Mapping[str, Any]) -> None:
    """Whatever the process has that waits; its end will be this one's."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, SET_SIGNAL, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    os.setsid()  # Ray stops a worker with its process group.
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    os.chdir(asked["cwd"])
    if "ray._raylet" in sys.modules:
        sys.modules["ray._raylet"].Config.initialize("")  # reads all of the variables again but the job


def run_as_main(words: list[str]) -> None:
    """What Python does with the words of its command line."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
