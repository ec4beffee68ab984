"""Whether a run's processes have room on the nodes that there are, asked before anything waits for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import get_current_placement_group

from marl_aajr.training.config import Resources

Node = Mapping[str, float]
"""Amounts of CPU and GPU."""

_PATIENCE_SECONDS = 30.0
"""The time that a busy cluster may take to free what a run needs; a run that has just ended takes seconds."""

_REPLACEMENT_SECONDS = 120.0
"""The time that a cluster may take to replace a node that was lost."""

_KINDS = ("CPU", "GPU")
_EXACT = 1e-4
"""Ray counts resources in these."""


@dataclass(frozen=True)
class Group:
    """Processes of a run that are alike.

    Attributes:
        name: of their kind.
        count: their number.
        each: the resources of one of them.
    """

    name: str
    count: int
    each: Node


def bundles(resources: Resources) -> list[dict[str, float]]:
    """A run as the bundles of a placement group, as `ray.tune.PlacementGroupFactory` takes them.

    The first is for the process that calls `train`, with the GPUs of what it does itself; RLlib puts env
    runner i on bundle i, and learners follow.
    """
    runners, learners = groups(resources)
    local = [group.each["GPU"] for group in (runners, learners) if group.count == 0]
    main = {"CPU": 1.0, "GPU": max(local, default=0.0)}
    return [main, *(dict(group.each) for group in (runners, learners) for _ in range(group.count))]


def groups(resources: Resources) -> tuple[Group, Group]:
    """The env runners and the learners of a run."""
    r = resources
    return (
        Group("env runner", r.env_runners, {"CPU": r.cpus_per_env_runner, "GPU": r.gpus_per_env_runner}),
        Group("learner", r.learners, {"CPU": r.cpus_per_learner, "GPU": r.gpus_per_learner}),
    )


def have_room(runners: Group, learners: Group, nodes: Sequence[Node]) -> bool:
    """Whether each process can be put on one of the nodes, all at the same time."""
    # Learners placed so far → the most env runners that can be placed beside them.
    most = {0: 0}
    for node in nodes:
        after: dict[int, int] = {}
        for here in range(_times(learners.each, node, learners.count) + 1):
            rest = {kind: node.get(kind, 0.0) - here * learners.each[kind] for kind in _KINDS}
            beside = _times(runners.each, rest, runners.count)
            for before, placed in most.items():
                total = min(before + here, learners.count)
                after[total] = max(after.get(total, 0), placed + beside)
        most = after
    return most.get(learners.count, -1) >= runners.count


def _times(each: Node, node: Node, limit: int) -> int:
    """The number of processes of a kind that a node has room for, `limit` at most."""
    room = [int((node.get(kind, 0.0) + _EXACT) / amount) for kind, amount in each.items() if amount > 0]
    return max(0, min([limit, *room]))


def check_room(resources: Resources) -> None:
    """Find out at once whether a run would wait for ever for processes that cannot be placed.

    Raises:
        ValueError: it would; says what the cluster, or the placement group that this process is in, has.
    """
    group = get_current_placement_group()
    if group is not None:
        _check_bundles(bundles(resources), group.bundle_specs)
        return
    runners, learners = groups(resources)
    needs = f"needs {_sum(runners, learners)}"
    nodes = [_amounts(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    if not have_room(runners, learners, nodes):
        raise ValueError(
            f"resources: expected a run that fits the cluster, which has {_show_nodes(nodes)}; it {needs}; "
            "lower resources.env_runners, resources.learners or what each of them takes"
        )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not have_room(runners, learners, free := _free()):
        if time.monotonic() > deadline:
            raise ValueError(
                f"resources: the cluster is busy: {_show_nodes(free)} are free of {_show_nodes(nodes)}, and "
                f"the run {needs}; wait for other work to end"
            )
        time.sleep(0.2)


def wait_for_room(resources: Resources) -> None:
    """`check_room` for a run that has just lost a process, and perhaps a node that will be replaced."""
    deadline = time.monotonic() + _REPLACEMENT_SECONDS
    while True:
        try:
            check_room(resources)
            return
        except ValueError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _check_bundles(needed: list[dict[str, float]], given: Sequence[Mapping[str, float]]) -> None:
    fits = len(given) >= len(needed) and all(
        has.get(kind, 0.0) + _EXACT >= amount
        for wanted, has in zip(needed, given, strict=False)
        for kind, amount in wanted.items()
    )
    if not fits:
        raise ValueError(
            "resources: expected a placement group with the bundles "
            f"{[_short(bundle) for bundle in needed]}, in this order (marl_aajr.training.capacity.bundles), "
            f"got {[_short(bundle) for bundle in given]}; ask Tune for them, or lower the run's resources"
        )


def _free() -> list[Node]:
    return [_amounts(node) for node in available_resources_per_node().values()]


def _amounts(node: Mapping[str, Any]) -> Node:
    return {kind: float(node.get(kind, 0.0)) for kind in _KINDS}


def _short(bundle: Mapping[str, float]) -> dict[str, float]:
    return {kind: amount for kind, amount in bundle.items() if amount}


def _sum(*parts: Group) -> str:
    total = {kind: sum(part.count * part.each[kind] for part in parts) for kind in _KINDS}
    detail = ", ".join(
        f"{part.count} {part.name}(s) with {_show(part.each)} each" for part in parts if part.count
    )
    return f"{_show(total)} ({detail})"


def _show_nodes(nodes: Sequence[Node]) -> str:
    """The sum, and where that does not say it all the nodes, alike ones counted."""
    total = _show({kind: sum(node[kind] for node in nodes) for kind in _KINDS})
    if len(nodes) < 2:
        return f"{total} on {len(nodes)} node(s)"
    alike: dict[str, int] = {}
    for node in nodes:
        alike[_show(node)] = alike.get(_show(node), 0) + 1
    each = "; ".join(f"{count} with {amounts}" for amounts, count in sorted(alike.items()))
    return f"{total} on {len(nodes)} nodes ({each})"


def _show(amounts: Node) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in amounts.items())
