"""Ray for a run: connect or start, check that the run fits, and stop only what was started here.

Before anything waits for a run's processes, `check_room` finds out whether they have room on the nodes that
there are, and `check_nodes_match` whether these have the versions of what the processes send each other.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from marl_aajr.training.resources import Amounts, Group, Resources
from marl_aajr.training.run_record import other_versions, software

KINDS = ("CPU", "GPU")
"""The resources that runs ask a cluster for."""

_PATIENCE_SECONDS = 30.0
"""The time that a busy cluster may take to free what a run needs; a run that has just ended takes seconds."""

_REPLACEMENT_SECONDS = 120.0
"""The time that a cluster may take to replace a node that was lost."""

_EXACT = 1e-4
"""Ray counts resources in these."""

_ANSWER_SECONDS = 60.0
"""The time that a node may take to start a process."""


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
        # Before the trials of a study, the study has asked.
        if address is not None or (get_current_placement_group() is None and len(_alive()) > 1):
            check_nodes_match()
        yield
    finally:
        rllib.setLevel(level)
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Whether workers of a run without GPUs may see them; Ray warns about its default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is not None:
        # `ray start` asks for the token of ~/.ray where there is one; a process that joins must offer it.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env=_quoted_python(),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = str(error).strip() or type(error).__name__
        # The versions of Ray and Python stand in the lines that follow.
        why = " ".join(text.split()) if text.startswith("Version mismatch") else text.splitlines()[0]
        raise ValueError(f"cannot use Ray at {address or 'this machine'}: {why}") from error
    finally:
        if main:  # Ray's own handler would have this process exit in the middle of an update.
            signal.signal(signal.SIGTERM, handler)


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


def _check_reachable(address: str) -> None:
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ValueError(
            f"resources.address: expected host:port or auto, got {address!r}; run on a machine of the cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=3.0).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"resources.address: no Ray cluster answers at {address} ({error}); start one with "
            "'ray start --head', or leave the address out for a local one"
        ) from None


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def have_room(runners: Group, learners: Group, nodes: Sequence[Amounts]) -> bool:
    """Whether each process can be put on one of the nodes, all at the same time."""
    # Learners placed so far → the most env runners that can be placed beside them.
    most = {0: 0}
    for node in nodes:
        after: dict[int, int] = {}
        for here in range(_times(learners.each, node, learners.count) + 1):
            rest = {kind: node.get(kind, 0.0) - here * learners.each[kind] for kind in KINDS}
            beside = _times(runners.each, rest, runners.count)
            for before, placed in most.items():
                total = min(before + here, learners.count)
                after[total] = max(after.get(total, 0), placed + beside)
        most = after
    return most.get(learners.count, -1) >= runners.count


def _times(each: Amounts, node: Amounts, limit: int) -> int:
    """The number of processes of a kind that a node has room for, `limit` at most."""
    room = [int((node.get(kind, 0.0) + _EXACT) / amount) for kind, amount in each.items() if amount > 0]
    return max(0, min([limit, *room]))


def check_room(resources: Resources) -> None:
    """Raise `ValueError` at once where a run would wait for ever for processes that cannot be placed.

    It says what the cluster, or the placement group that this process is in, has.
    """
    if (group := get_current_placement_group()) is not None:
        _check_bundles(resources.bundles, group.bundle_specs)
        return
    runners, learners = resources.groups
    each = [f"{g.count} {g.name}(s) with {show(g.each)} each" for g in (runners, learners) if g.count]
    total = show(*[runners.each] * runners.count, *[learners.each] * learners.count)
    needs = f"needs {total} ({', '.join(each)})"
    nodes = amounts_of_nodes()
    if not have_room(runners, learners, nodes):
        raise ValueError(
            f"resources: expected a run that fits the cluster, which has {_show_nodes(nodes)}; it {needs}; "
            "lower resources.env_runners, resources.learners or what each of them takes"
        )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not have_room(runners, learners, free := [*available_resources_per_node().values()]):
        if time.monotonic() > deadline:
            raise ValueError(
                f"resources: the cluster is busy: {_show_nodes(free)} are free of {_show_nodes(nodes)}, and "
                f"the run {needs}; wait for other work to end"
            )
        time.sleep(0.2)


def wait_for_room(resources: Resources) -> None:
    """`check_room` for a run that has just lost a process, and perhaps a node that will be replaced."""
    deadline = time.monotonic() + _REPLACEMENT_SECONDS
    while time.monotonic() < deadline:
        with suppress(ValueError):
            check_room(resources)
            break
        time.sleep(1.0)
    check_room(resources)
    check_nodes_match(all_answer=False)


def amounts_of_nodes() -> list[dict[str, float]]:
    """The CPUs and GPUs of each node of the cluster."""
    return [{kind: float(node["Resources"].get(kind, 0.0)) for kind in KINDS} for node in _alive()]


def _check_bundles(needed: list[dict[str, float]], given: Sequence[Amounts]) -> None:
    fits = len(given) >= len(needed) and all(
        has.get(kind, 0.0) + _EXACT >= amount
        for wanted, has in zip(needed, given, strict=False)
        for kind, amount in wanted.items()
    )
    if not fits:
        raise ValueError(
            f"resources: expected a placement group with the bundles {needed}, in this order "
            f"(Resources.bundles), got {[dict(bundle) for bundle in given]}; ask Tune for "
            "them, or lower the run's resources"
        )


def _show_nodes(nodes: Sequence[Amounts]) -> str:
    """The sum, and where that does not say it all the nodes, alike ones counted."""
    each = [f"{count} with {amounts}" for amounts, count in sorted(Counter(map(show, nodes)).items())]
    return f"{show(*nodes)} on {len(nodes)} node(s)" + f" ({'; '.join(each)})" * (len(nodes) > 1)


def show(*parts: Amounts) -> str:
    """The sum of the parts in words."""
    return " and ".join(f"{sum(part.get(kind, 0.0) for part in parts):g} {kind}" for kind in KINDS)


_matching: set[str] = set()
"""Nodes that have been asked by this process; asking starts a process on each."""


def check_nodes_match(*, all_answer: bool = True) -> None:
    """Ask every node of the cluster that has not been asked yet for its versions.

    Not all need answer: one that has just been lost may still be counted as alive.

    Raises:
        ValueError: a node has other versions than this process, has no marl_aajr, or does not answer.
    """
    new = [node for node in _alive() if node["NodeID"] not in _matching]
    if not new:
        return
    ask = ray.remote(num_cpus=0, max_retries=0)(software)
    answers = {}
    for node in new:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = ask.options(scheduling_strategy=there).remote()
        answers[answer] = f"node {node['NodeName']} ({node['NodeID'][:8]})"
    done, late = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_SECONDS)
    silent = dict.fromkeys(late, f"does not answer within {_ANSWER_SECONDS:.0f} s")
    problems = []
    for answer in done:
        try:
            differing = other_versions(software(), ray.get(answer))
        except RayError as error:
            silent[answer] = f"cannot run marl_aajr ({str(error).strip().splitlines()[-1]})"
        else:
            problems += [f"{answers[answer]} {', '.join(differing)}"] if differing else []
    if all_answer:
        problems += [f"{answers[answer]} {why}" for answer, why in silent.items()]
    if problems:
        raise ValueError(
            "expected nodes with the versions of this process, got others; install the same on all of them, "
            "or leave these out:\n" + "\n".join(sorted(problems))
        )
    _matching.update(
        node["NodeID"] for node, answer in zip(new, answers, strict=True) if answer not in silent
    )
