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


@cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a source; None where it cannot be had, with a line in the log."""
    if os.environ.get(ENVIRONMENT_VARIABLE, "") == "0":
        return None
    named = os.environ.get("CXX")
    compiler = shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        _LOGGER.info("no C++ compiler: PyTorch computes what %s would", source.stem)
        return None
    try:
        return ctypes.CDLL(str(_library(source, [compiler, *_FLAGS, f"-I{_HEADERS}"])))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        _LOGGER.warning("PyTorch computes what %s would, as %s failed: %s", source.stem, compiler, said)
        return None


def _library(source: Path, command: list[str]) -> Path:
    """The file of the library, named by the text and the processor as the compiler sees them."""
    text = _output([*command, "-E", "-P", str(source)])
    macros = _output([*command, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(b"\0".join([text, macros, *map(str.encode, command)])).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marl_aajr"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"marl_aajr-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{source.stem}-{digest[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own) / library.name
            _output([*command, str(source), "-o", str(made)])
            made.replace(library)  # in one step: other processes may be doing the same
    return library


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout
