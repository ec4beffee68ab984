"""What the cluster has, and whether a study has room on it: asked before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import ray

from marl_aajr.study.config import StudyConfig
from marl_aajr.study.runs import Run
from marl_aajr.training.capacity import bundles, groups, have_room
from marl_aajr.training.cluster import ray_for
from marl_aajr.training.config import Resources
from marl_aajr.training.files import YamlSource

_KINDS = ("CPU", "GPU")


@contextmanager
def cluster_for(study: StudyConfig, source: YamlSource) -> Iterator[list[dict[str, float]]]:
    """Ray within this block, and the CPUs and GPUs of each of its nodes.

    Raises:
        ValueError: nothing answers at the address.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_for(Resources(address=study.address)))
        except ValueError as error:
            text = str(error).removeprefix("resources.")
            raise ValueError(f"{source.where(('address',))}: {text}") from None
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [{kind: float(node.get(kind, 0.0)) for kind in _KINDS} for node in alive]


def dashboard() -> str:
    """The address of Ray's dashboard; empty where it is off."""
    url = ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False).dashboard_url
    return f"http://{url}" if url else ""


def check_fits(runs: Iterable[Run], nodes: list[dict[str, float]], source: YamlSource) -> None:
    """Whether each run can be placed on the cluster when it is alone.

    Raises:
        ValueError: one line for each kind of request that the cluster can never serve.
    """
    problems: dict[str, str] = {}
    for run in runs:
        resources = run.config.resources
        key = resources.model_dump_json()
        if key not in problems and not _fits(resources, nodes):
            problems[key] = (
                f"{run.where('resources', source)}: resources: expected runs that fit the cluster, which has "
                f"{_show(nodes)}, got {run.name}, which needs {_show(bundles(resources))}; lower "
                "env_runners, learners or what each of them takes"
            )
    if problems:
        raise ValueError("\n".join(problems.values()))


def _fits(resources: Resources, nodes: list[dict[str, float]]) -> bool:
    """Whether there is a node for the process that trains, and room for the others beside it."""
    main = bundles(resources)[0]
    for place, node in enumerate(nodes):
        rest = {kind: node[kind] - main[kind] for kind in _KINDS}
        if min(rest.values()) >= 0:
            others = [*nodes[:place], rest, *nodes[place + 1 :]]
            if have_room(*groups(resources), others):
                return True
    return False


def _show(parts: list[dict[str, float]]) -> str:
    total = {kind: sum(part[kind] for part in parts) for kind in _KINDS}
    return " and ".join(f"{amount:g} {kind}" for kind, amount in total.items()) + f" in {len(parts)} part(s)"
