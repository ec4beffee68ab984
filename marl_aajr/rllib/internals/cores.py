"""The cores that a process may keep busy."""

from __future__ import annotations

import os

import ray


def own_cores() -> int:
    """The whole CPUs that Ray has given to this task or actor; outside of them, those of this machine.

    These are the ones that the operating system grants and, where Ray runs, that Ray counts here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not ray.is_initialized():
        return cores
    context = ray.get_runtime_context()
    if context.worker.mode == ray.WORKER_MODE:
        given = context.get_assigned_resources().get("CPU", 0.0)
    else:
        here = context.get_node_id()
        given = next((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["NodeID"] == here), cores)
    return max(1, min(cores, int(given)))
