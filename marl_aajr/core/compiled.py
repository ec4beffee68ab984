"""C++ sources of this package, compiled for the machine at hand.

A source is compiled once for each kind of processor, by the C++ compiler of the machine (`CXX`, else `c++`,
`g++` or `clang++`; in a second), and kept in the user's cache (`XDG_CACHE_HOME`). Whatever is computed by it
is computed by PyTorch where there is no compiler. `MARL_AAJR_COMPILE=0` in the environment says to compile
nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

ENVIRONMENT_VARIABLE = "MARL_AAJR_COMPILE"

_HEADERS = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC")
_COMPILERS = ("c++", "g++", "clang++")

_LOGGER = logging.getLogger(__name__)


def kernels_compiled() -> bool:
    """Whether small networks go through their kernel."""
    return compiled(_HEADERS / "mlp_kernel.cpp") is not None


@cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a source; None where it cannot be had, with a line in the log."""
    if os.environ.get(ENVIRONMENT_VARIABLE, "") == "0":
        return None
    named = shlex.split(os.environ.get("CXX", ""))
    found = [path for path in map(shutil.which, named[:1] or _COMPILERS) if path]
    if not found:
        _LOGGER.info("no C++ compiler: PyTorch computes what %s would", source.stem)
        return None
    try:
        return _loaded(source, [found[0], *named[1:], *_FLAGS, f"-I{_HEADERS}", str(source)])
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        _LOGGER.warning("PyTorch computes what %s would, as %s failed: %s", source.stem, found[0], said)
        return None


def _loaded(source: Path, command: list[str]) -> ctypes.CDLL:
    name = f"{source.stem}-{_digest(source, command[:-2])}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marl_aajr"
    library = folder / name
    if not library.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own = tempfile.TemporaryDirectory(dir=folder)
        except OSError:  # nowhere to keep it
            own = tempfile.TemporaryDirectory()
        with own:
            made = Path(own.name) / name
            subprocess.run([*command, "-o", str(made)], capture_output=True, check=True)
            if made.parent.parent != folder:
                return ctypes.CDLL(str(made))
            made.replace(library)  # in one step: other processes may be doing the same
    return ctypes.CDLL(str(library))


def _digest(source: Path, command: list[str]) -> str:
    """A name for the text, the compiler and the processor, whose instructions `-march=native` uses."""
    parts = [path.read_bytes() for path in (source, *sorted(_HEADERS.glob("*.h")))]
    compiler = Path(command[0]).resolve()
    described = [*command, str(compiler), str(compiler.stat().st_mtime_ns), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        described += [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))]
    except OSError:
        described += [platform.processor(), platform.node()]
    return hashlib.sha256(b"\0".join([*parts, *map(str.encode, described)])).hexdigest()[:16]
