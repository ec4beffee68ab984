"""How long a study will take: from what it has measured so far, else from figures that are called assumed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from marl_aajr.study.config import StudyConfig
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import variants
from marl_aajr.study.tuning import decided
from marl_aajr.training.method import NO_METHOD

PLAIN_SPEED = 15_000.0
REGULARIZED_SPEED = 10_000.0
ADVERSARY_SPEED = 8_000.0
"""Environment steps per second of simple_spread with the default networks on one core."""

EPISODE_SECONDS = 0.007
"""One attacked episode of simple_spread, the mean over the attacks of the standard suite, on one core."""

START_SECONDS = 15.0
"""Until the first event: Ray, and processes that load torch and RLlib."""


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of each node, and whether they were measured.

    Attributes:
        seconds: of each node by name; 0 where it is done.
        assumed: how many nodes that are left rest on an assumption.
        left: how many nodes are left.
    """

    seconds: Mapping[str, float]
    assumed: int
    left: int

    @property
    def basis(self) -> str:
        """Where the figures are from, in words."""
        if not self.left or not self.assumed:
            return "measured on what this study has finished"
        assumption = (
            f"assuming {PLAIN_SPEED:,.0f} env steps/s for plain PPO, {REGULARIZED_SPEED:,.0f} with a "
            f"regularizer, {ADVERSARY_SPEED:,.0f} for adversaries, "
            f"{1000 * EPISODE_SECONDS:g} ms per attacked episode"
        )
        return assumption if self.assumed == self.left else f"partly measured, partly {assumption}"


def estimate(nodes: Mapping[str, Node], folder: StudyFolder) -> Estimate:
    """What the nodes that are not done will take, one core each.

    A node takes as long as the finished ones of its kind, environment and method did on average.
    """
    took = {event["node"]: event["seconds"] for event in folder.events() if event["event"] == "finished"}
    measured: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for name, seconds in took.items():
        if name in nodes:
            node = nodes[name]
            measured[_alike(node)].append(seconds / max(node.env_steps, 1))
    seconds, assumed, left = {}, 0, 0
    for name, node in nodes.items():
        if folder.done(node):
            seconds[name] = 0.0
            continue
        left += 1
        rates = measured.get(_alike(node))
        assumed += rates is None
        seconds[name] = fmean(rates) * max(node.env_steps, 1) if rates else _assumed(node)
    return Estimate(seconds, assumed, left)


def tuning_seconds(study: StudyConfig, folder: StudyFolder) -> float:
    """What the searches that are not finished may take on one core, if no trial is stopped early."""
    if study.tune is None:
        return 0.0
    entry = study.tune
    left = [variant for variant in variants(study) if variant.name not in decided(study, folder)]
    steps = len(left) * entry.trials * entry.env_steps * len(entry.seeds)
    played = len(left) * entry.trials * entry.rungs * len(entry.seeds) * 2 * entry.episodes
    return steps / REGULARIZED_SPEED + played * EPISODE_SECONDS


def duration(nodes: Mapping[str, Node], estimated: Estimate, *, cpus: float, slots: int | None) -> float:
    """Seconds from start to end where the CPUs, or the number of nodes at a time, are what limits."""
    if not estimated.left:
        return 0.0
    cost = {name: sum(each.get("CPU", 0.0) for each in node.bundles) for name, node in nodes.items()}
    total = sum(seconds * max(cost[name], 1.0) for name, seconds in estimated.seconds.items()) / max(
        cpus, 1.0
    )
    if slots is not None:
        total = max(total, sum(estimated.seconds.values()) / slots)
    return START_SECONDS + max(total, *estimated.seconds.values())


def _alike(node: Node) -> tuple[str, ...]:
    variant = node.run.variant
    kind = node.kind if node.adversary is None else node.adversary.kind
    return kind, variant.environment.title, variant.method.label or variant.method.name


def _assumed(node: Node) -> float:
    if node.adversary is not None:
        return node.env_steps / ADVERSARY_SPEED
    if node.evaluation is not None:
        return _episodes(node) * EPISODE_SECONDS
    plain = node.run.config.method.name == NO_METHOD
    return node.env_steps / (PLAIN_SPEED if plain else REGULARIZED_SPEED)


def _episodes(node: Node) -> int:
    """Attacked episodes of one run's judgement."""
    entry, suite = node.evaluation, node.suite
    assert entry is not None
    assert suite is not None
    settled = entry.protocol(suite, team=None).settled()
    rows = len(settled.attacks) * len(settled.epsilons) * len(settled.actions)
    return rows * (settled.episodes + settled.selection_episodes)
