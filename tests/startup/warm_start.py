"""A process that has loaded torch and all else that Ray's workers load but Ray itself, and forks them.

Loading all of it takes a worker of RLlib two seconds; Ray, which reads its settings while it is loaded, and
what needs it take a third of them. `python warm_start.py FOLDER PID` is the process; it serves until the
process PID has ended. Commands of marl_aajr are forked as well where the environment says `WARM_COMMANDS`;
Ctrl-C only ends them.
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
from pathlib import Path

ALL = ("marl_aajr.training.trainer", "marl_aajr.study.driver", "ray.rllib.algorithms.ppo")
WORKER = "/ray/_private/workers/default_worker.py"
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
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address(folder))
    except OSError:
        return
    asked = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
    text = json.dumps(asked).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(text)
    os._exit(int(connection.recv(8) or 1))


def serve(folder: str, owner: str) -> None:
    """Fork for whoever connects, until the owner ends."""
    try:
        alive = os.pidfd_open(int(owner))
    except ProcessLookupError:
        return
    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address(folder)}.new")
        listener.listen(100)
        Path(f"{address(folder)}.new").rename(address(folder))
        while alive not in select.select([listener.fileno(), alive], [], [])[0]:
            with listener.accept()[0] as connection:
                if os.fork() == 0:
                    listener.close()
                    os.close(alive)
                    become(connection)


def load() -> None:
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


def become(connection: socket.socket) -> None:
    """Run what is asked for as if it had been started where it was asked for."""
    import numpy as np  # Those that hand over need none.

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    np.random.seed()  # noqa: NPY002 - anywhere else, too, no two processes draw the same
    code = 1
    try:
        words = received(connection)
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
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


def received(connection: socket.socket) -> list[str]:
    """The command line; all else of the process that waits is taken over, and its end will be this one's."""
    size, files, *_ = socket.recv_fds(connection, 8, 3)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += connection.recv(1 << 20)
    asked = json.loads(text)
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
    return list(asked["words"])


if __name__ == "__main__":
    serve(*sys.argv[1:])
