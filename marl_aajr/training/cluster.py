"""Ray for a run: connect or start, check that the run fits, and stop only what was started here."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from marl_aajr.training.config import Resources

_CONNECT_SECONDS = 3.0
_PATIENCE_SECONDS = 30.0
"""How long a busy cluster may take to free what the run needs; a run that has just ended takes seconds."""


_NEEDLESS = b"has constructor arguments in the object store and max_restarts > 0"


@contextmanager
def ray_for(resources: Resources) -> Iterator[None]:
    """Ray within this block: the one this process uses, the one at ``address``, or a new local one.

    Raises:
        ValueError: nothing answers at the address, or the run needs more than the cluster has.
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
        _check_fits(resources)
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
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"cannot use Ray at {address or 'this machine'}: {_first_line(error)}") from error


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


def _check_fits(resources: Resources) -> None:
    """Raise ``ValueError`` where the run would wait for ever for actors that cannot be placed."""
    groups = _actors(resources)
    needed = _total(groups)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    too_much = [kind for kind, amount in needed.items() if amount > has[kind]]
    homeless = [
        name
        for name, count, each in groups
        if count and not any(all(node.get(k, 0.0) >= amount for k, amount in each.items()) for node in nodes)
    ]
    if too_much or homeless:
        raise ValueError(
            f"resources: expected a run that fits the cluster, which has {_show(has)} on {len(nodes)} "
            f"node(s); it needs {_show(needed)} ({_detail(groups)}); lower resources.env_runners, "
            "resources.learners or what each of them takes"
        )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(amount > ray.available_resources().get(kind, 0.0) for kind, amount in needed.items() if amount):
        if time.monotonic() > deadline:
            free = {kind: ray.available_resources().get(kind, 0.0) for kind in has}
            raise ValueError(
                f"resources: the cluster is busy: {_show(free)} of {_show(has)} are free and the run needs "
                f"{_show(needed)} ({_detail(groups)}); wait for other work to end"
            )
        time.sleep(0.2)


def _actors(resources: Resources) -> list[tuple[str, int, dict[str, float]]]:
    r = resources
    return [
        ("env runner", r.env_runners, {"CPU": r.cpus_per_env_runner, "GPU": r.gpus_per_env_runner}),
        ("learner", r.learners, {"CPU": r.cpus_per_learner, "GPU": r.gpus_per_learner}),
    ]


def _total(groups: list[tuple[str, int, dict[str, float]]]) -> dict[str, float]:
    return {kind: sum(count * each[kind] for _, count, each in groups) for kind in ("CPU", "GPU")}


def _show(amounts: Mapping[str, Any]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in amounts.items())


def _detail(groups: list[tuple[str, int, dict[str, float]]]) -> str:
    return ", ".join(f"{count} {name}(s) with {_show(each)} each" for name, count, each in groups if count)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
