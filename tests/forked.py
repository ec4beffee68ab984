"""Python programs in processes of their own, forked from one that has loaded torch, Ray and marl_aajr.

Loading them takes most of a short program's time. All else is as where a person starts it; Ctrl-C, and a
start with nothing loaded, are tested with processes that are not forked.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from types import ModuleType

import ray

ROOT = Path(__file__).parents[1]

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    ["marl_aajr.cli.app", "marl_aajr.study.driver", "marl_aajr.training.trainer", "ray.rllib.algorithms.ppo"]
)


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
        arguments = (self.words, cwd, os.environ | extra, self._files)
        self._process = _FORKING.Process(target=_run, args=arguments)
        self._process.start()

    def finish(self, timeout: float = 200) -> CompletedProcess[str]:
        """Wait for its end."""
        self._process.join(timeout)
        code = self._process.exitcode
        assert code is not None, f"{self.words} has not ended after {timeout} s"
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        self._said.cleanup()
        return CompletedProcess(self.words, code, out, err)


def _run(words: list[str], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    for number, file in enumerate(files, start=1):
        with file.open("wb") as target:
            os.dup2(target.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    try:
        _run_as_main(words)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()  # Ray's, which multiprocessing leaves out


def _run_as_main(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv, sys.path[:0] = words[1:], [""]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *words[2:]], [""]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[:0] = words, [str(Path(words[0]).parent)]
        runpy.run_path(words[0], run_name="__main__")
