"""Whether all nodes of a cluster have what this process has: other versions mean other numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from marl_aajr.version import __version__

_PACKAGES = ("ray", "torch", "numpy", "gymnasium", "pettingzoo")
"""What processes of a run send each other are objects of these."""

_ANSWER_SECONDS = 60.0
"""How long a node may take to start a process."""


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
    """What is different, by name with both versions."""
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
