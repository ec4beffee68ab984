"""Ray for a run: connect or start, check that the run fits, and stop only what was started here.

The nodes of a cluster must have the versions of what a run's processes send each other: `check_nodes_match`
asks each of them before the run starts.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import RayError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from marl_aajr import __version__
from marl_aajr.training.capacity import check_room
from marl_aajr.training.config import Resources

_CONNECT_SECONDS = 3.0

_NEEDLESS = b"has constructor arguments in the object store and max_restarts > 0"


@contextmanager
def ray_for(resources: Resources, *, own_environments: bool = False) -> Iterator[None]:
    """Ray within this block: the one this process uses, the one at `address`, or a new local one.

    Args:
        resources: where to run, and what a run needs.
        own_environments: whether workers get a runtime environment of their own, as Tune's trials do.

    Raises:
        ValueError: nothing answers at the address, the run needs more than the cluster has, its nodes have
            other versions of what matters than this process, or the Ray that this process uses cannot start
            workers with a runtime environment.
    """
    started = not ray.is_initialized()
    rllib = logging.getLogger("ray.rllib")
    level = rllib.level
    rllib.setLevel(logging.ERROR)
    try:
        address = resources.address or (os.environ.get("RAY_ADDRESS") if started else None)
        if address is not None:
            _check_reachable(address)
        if started:
            _start(address)
        else:
            _check_python_quoted(own_environments)
        check_room(resources)
        if address is not None or _several_nodes():
            check_nodes_match()
        yield
    finally:
        rllib.setLevel(level)
        if started:
            ray.shutdown()


@contextmanager
def native_warning_hidden() -> Iterator[None]:
    """Within this block, a warning of Ray's C++ side about RLlib's env runners does not reach stderr.

    RLlib passes them their configuration through the object store and keeps it there, so that the warning
    (ray issue 53727) is needless; it comes past Python's logging. Everything else is passed on.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            os.write(2, b"".join(line for line in file if _NEEDLESS not in line))


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Whether workers of a run without GPUs may see them; Ray warns about its default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is not None:
        # `ray start` asks for the token of ~/.ray where there is one; a process that joins must offer it.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        with _own_sigterm():
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=_quoted_python(),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"cannot use Ray at {address or 'this machine'}: {_reason(error)}") from error


def _quoted_python() -> dict[str, str] | None:
    """The interpreter for workers with a runtime environment: Ray starts them by a shell, and quotes nothing.

    The nodes of a cluster then need it at this same path, as where they share a file system.
    """
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


def _check_python_quoted(own_environments: bool) -> None:
    """Refuse a Ray, started elsewhere in this process, that would wait for ever for workers."""
    needed = _quoted_python()
    environment = dict(ray.get_runtime_context().runtime_env)
    if needed and "py_executable" not in environment and (own_environments or environment):
        raise ValueError(
            f"Ray cannot start workers with a runtime environment by {sys.executable}, which a shell would "
            f"split; start it by ray.init(runtime_env={needed}), or move the virtual environment"
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does at SIGTERM; Ray would have it exit in the middle of an update."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ValueError(
            f"resources.address: expected host:port or auto, got {address!r}; run on a machine of the cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"resources.address: no Ray cluster answers at {address} ({error}); start one with "
            "'ray start --head', or leave the address out for a local one"
        ) from None


def _several_nodes() -> bool:
    """Whether a run may leave this machine; before the trials of a study, the study has asked."""
    return get_current_placement_group() is None and sum(node["Alive"] for node in ray.nodes()) > 1


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    # The versions of Ray and Python stand in the lines that follow.
    return " ".join(text.split()) if text.startswith("Version mismatch") else text.splitlines()[0]


_PACKAGES = ("ray", "torch", "numpy", "gymnasium", "pettingzoo")
"""The packages whose objects the processes of a run send each other."""

_ANSWER_SECONDS = 60.0
"""The time that a node may take to start a process."""


_matching: set[str] = set()
"""Nodes that have been asked by this process; asking starts a process on each."""


def check_nodes_match() -> None:
    """Ask every node of the cluster that has not been asked yet for its versions.

    Raises:
        ValueError: a node has other versions than this process, has no marl_aajr, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in _matching]
    if not nodes:
        return
    expected = software()
    ask = ray.remote(num_cpus=0, max_retries=0)(software)
    answers = {
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node
        for node in nodes
    }
    done, late = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_SECONDS)
    problems = [f"{_name(answers[one])} does not answer within {_ANSWER_SECONDS:.0f} s" for one in late]
    for answer in done:
        try:
            differing = other_versions(expected, ray.get(answer))
        except RayError as error:
            differing = [f"cannot run marl_aajr ({str(error).strip().splitlines()[-1]})"]
        if differing:
            problems.append(f"{_name(answers[answer])} {', '.join(differing)}")
    if problems:
        raise ValueError(
            "expected nodes with the versions of this process, got others; install the same on all of them, "
            "or leave these out:\n" + "\n".join(sorted(problems))
        )
    _matching.update(node["NodeID"] for node in nodes)


def software() -> dict[str, str]:
    """The versions of this process; of Python what matters to pickled code, of torch not for which device."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "marl_aajr": __version__}
    return found | {name: _version(name) for name in _PACKAGES}


def other_versions(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The differences, by name with both versions."""
    return [
        f"has {name} {found[name]}, not {version}"
        for name, version in expected.items()
        if found[name] != version
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def _name(node: Mapping[str, str]) -> str:
    return f"node {node['NodeName']} ({node['NodeID'][:8]})"
