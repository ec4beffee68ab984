"""The progress of a study, node by node, and the time that the rest will take.

The times come from what the study has measured so far, else from figures that are called assumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, Literal

from marl_aajr.adversaries.kinds import STEPS_PER_SECOND
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.row_games import plays_of
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import StudyRun, variants
from marl_aajr.study.study_config import StudyConfig, TuningEntry
from marl_aajr.training.files import YamlSource
from marl_aajr.training.method import NO_METHOD

State = Literal["waiting", "running", "finished", "failed", "interrupted", "impossible"]
"""`impossible`: something that it needs has failed."""

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class StudyPlan:
    """A study that has been checked; its `nodes`, needs first, are the part that `only` asked for."""

    study: StudyConfig
    source: YamlSource
    folder: StudyFolder
    runs: tuple[StudyRun, ...]
    nodes: Mapping[str, Node]


@dataclass
class NodeProgress:
    """The progress of one node.

    Attributes:
        expected: seconds that it is expected to take in all.
        since: when it was started, by `time.monotonic`.
        share: the part of it that is done.
        first: when it reported first, and the part that was done then: after warm starts, or a resume.
        after: seconds that it takes once it is trained.
        speed: environment steps per second, where it trains.
        seconds: the time that it took.
        log: the file that has all of the error.
    """

    node: Node
    state: State = "waiting"
    expected: float = 0.0
    since: float = 0.0
    share: float = 0.0
    first: tuple[float, float] | None = None
    after: float = 0.0
    speed: float | None = None
    seconds: float | None = None
    restarts: int = 0
    error: str = ""
    log: str = ""

    @property
    def left(self) -> float:
        """Seconds that it will still take."""
        if self.state == "waiting":
            return self.expected
        if self.state != "running":
            return 0.0
        since, before = self.first if self.first and self.first[1] < self.share else (self.since, 0.0)
        if (done := self.share - before) > 0.02:
            return (time.monotonic() - since) * (1 - self.share) / done + self.after
        return self.expected


@dataclass
class GridProgress:
    """The progress of all nodes of a study, by name.

    Attributes:
        on_event: called with a flat record of everything that changes a state.
        slots: the number of nodes that may run at a time.
        dashboard: Ray's, where it is on.
        doing: what the study does before its nodes.
        tuning: seconds that it will take on one core.
    """

    nodes: dict[str, NodeProgress]
    on_event: OnEvent
    slots: int = 1
    dashboard: str = ""
    doing: str = ""
    tuning: float = 0.0

    def emit(self, event: str, node: str | None = None, **details: Any) -> None:
        """Hand an event on."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "event": event, **({} if node is None else {"node": node}), **details}
        self.on_event(record)

    def started(self, name: str) -> None:
        one = self.nodes[name]
        one.state, one.since, one.share, one.first = "running", time.monotonic(), 0.0, None
        self.emit("started", name)

    def advanced(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Take in what a running node reports."""
        one = self.nodes[name]
        one.speed = numbers.get("env_steps_per_second", one.speed)
        if numbers.get("to_play"):
            one.share = numbers["played"] / numbers["to_play"]
        elif "env_steps" in numbers:
            one.share = min(numbers["env_steps"] / one.node.env_steps, 1.0)
            steps = numbers.get("episodes_after", 0) * numbers.get("episode_length", 0)
            one.after = steps / one.speed if one.speed else 0.0
        one.first = one.first or (time.monotonic(), one.share)

    def ended(
        self, name: str, state: State, *, seconds: float | None = None, error: str = "", log: str = ""
    ) -> None:
        one = self.nodes[name]
        one.state, one.seconds, one.error, one.log = state, seconds, error, log
        details = {"seconds": seconds, "error": error, "log": log}
        self.emit(state, name, **{key: value for key, value in details.items() if value})

    def restarted(self, name: str, *, error: str, log: str) -> None:
        one = self.nodes[name]
        one.restarts += 1
        one.state = "waiting"
        self.emit("restarted", name, error=error, log=log)

    def count(self, state: State) -> int:
        return sum(progress.state == state for progress in self.nodes.values())

    @property
    def left(self) -> float:
        """Seconds until all is done."""
        remaining, slots = [progress.left for progress in self.nodes.values()], max(self.slots, 1)
        return max(self.tuning, 0.0) / slots + max(sum(remaining) / slots, max(remaining, default=0.0))


PLAIN_SPEED = 15_000.0
REGULARIZED_SPEED = 10_000.0
"""Environment steps per second of simple_spread with the default networks on one core."""

EPISODE_SECONDS = 0.007
"""One attacked episode of simple_spread, the mean over the attacks of the standard suite, on one core."""

ADVERSARY_EPISODES = 1000
"""What an adversary's warm start and its evaluation take, as such episodes."""

START_SECONDS = 15.0
"""Until the first event: Ray, and processes that load torch and RLlib."""


@dataclass(frozen=True)
class Forecast:
    """Expected seconds of each node, 0 where it is done; of how many left they are assumed, not measured."""

    seconds: Mapping[str, float]
    assumed: int
    left: int

    @property
    def basis(self) -> str:
        """The source of the figures, in words."""
        if not self.left or not self.assumed:
            return "measured on what this study has finished"
        assumption = (
            f"assuming {PLAIN_SPEED:,.0f} env steps/s for plain PPO, {REGULARIZED_SPEED:,.0f} with a "
            f"regularizer, {STEPS_PER_SECOND:,.0f} for adversaries, "
            f"{1000 * EPISODE_SECONDS:g} ms per attacked episode"
        )
        return assumption if self.assumed == self.left else f"partly measured, partly {assumption}"


def forecast(nodes: Mapping[str, Node], folder: StudyFolder) -> Forecast:
    """The time that the nodes which are not done will take, one core each.

    A node takes as long as the finished ones of its kind, environment and method did on average.
    """
    took = {event["node"]: event["seconds"] for event in folder.events() if event["event"] == "finished"}
    done = [nodes[name] for name in took.keys() & nodes.keys()]
    measured = grouped((_alike(node), took[node.name] / max(node.env_steps, 1)) for node in done)
    left = {name: node for name, node in nodes.items() if not folder.done(node)}
    rates = {name: fmean(measured[_alike(node)]) for name, node in left.items() if _alike(node) in measured}
    seconds = {
        name: rates[name] * max(node.env_steps, 1) if name in rates else _assumed(node)
        for name, node in left.items()
    }
    return Forecast(dict.fromkeys(nodes, 0.0) | seconds, assumed=len(left) - len(rates), left=len(left))


def tuning_seconds(study: StudyConfig, folder: StudyFolder) -> float:
    """The time of the searches that are not finished, on one core, if no trial is stopped early."""
    if study.tune is None:
        return 0.0
    tuned = folder.tuned(study)
    left = sum(variant.name not in tuned for variant in variants(study))
    return left * study.tune.trials * trial_seconds(study.tune)


def trial_seconds(entry: TuningEntry) -> float:
    """The time of one trial of a search, on one core, if it is not stopped early."""
    played = entry.rungs * 2 * entry.episodes * EPISODE_SECONDS
    return len(entry.seeds) * (entry.env_steps / REGULARIZED_SPEED + played)


def duration(nodes: Mapping[str, Node], foreseen: Forecast, *, cpus: float, slots: int | None) -> float:
    """Seconds from start to end where the CPUs, or the number of nodes at a time, are what limits."""
    if not foreseen.left:
        return 0.0
    cost = {name: sum(each.get("CPU", 0.0) for each in node.bundles) for name, node in nodes.items()}
    total = sum(seconds * max(cost[name], 1.0) for name, seconds in foreseen.seconds.items()) / max(cpus, 1.0)
    if slots is not None:
        total = max(total, sum(foreseen.seconds.values()) / slots)
    return START_SECONDS + max(total, *foreseen.seconds.values())


def _alike(node: Node) -> tuple[str, ...]:
    variant = node.run.variant
    kind = node.kind if node.adversary is None else node.adversary.kind
    return kind, variant.environment.title, variant.method.title


def _assumed(node: Node) -> float:
    if node.adversary is not None:
        return node.env_steps / STEPS_PER_SECOND + ADVERSARY_EPISODES * EPISODE_SECONDS
    if node.evaluation is not None and node.suite is not None:
        met = len(node.opponents)
        settled = node.evaluation.protocol(node.suite, team=None).settled(opponents=met)
        attacks = settled.attacks
        sizes = (len(settled.epsilons) if each.sized and each.epsilon is None else 1 for each in attacks)
        plays = sum(size * plays_of(each.at(1.0)) for size, each in zip(sizes, attacks, strict=True))
        beside = len(settled.disturb) + sum(len(parse_variation(text).values) for text in settled.vary)
        rows = (plays + beside) * len(settled.actions)
        seconds = rows * (settled.episodes + settled.selection_episodes) * EPISODE_SECONDS
        return seconds * (1 + met)
    plain = node.run.config.method.name == NO_METHOD
    return node.env_steps / (PLAIN_SPEED if plain else REGULARIZED_SPEED)
