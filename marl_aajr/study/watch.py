"""Where a study is: every node's state, as the people and programs that watch it see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from marl_aajr.study.graph import Node

State = Literal["waiting", "running", "finished", "failed", "interrupted", "impossible"]
"""`impossible`: something that it needs has failed."""

OnEvent = Callable[[dict[str, Any]], None]


@dataclass
class Progress:
    """One node.

    Attributes:
        node: the node.
        state: what has become of it.
        expected: seconds that it is expected to take in all.
        since: when it was started, by `time.monotonic`.
        share: how much of it is done.
        speed: environment steps per second, where it trains.
        seconds: how long it took.
        restarts: how often it was started again.
        error: why it failed.
        log: where that is told in full.
    """

    node: Node
    state: State = "waiting"
    expected: float = 0.0
    since: float = 0.0
    share: float = 0.0
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
        if self.share > 0.02:
            return (time.monotonic() - self.since) * (1 - self.share) / self.share
        return self.expected


@dataclass
class Board:
    """All nodes of a study.

    Attributes:
        nodes: by name.
        on_event: told of everything that changes a state, as one flat record.
        slots: how many nodes may run at a time.
        dashboard: Ray's, where it is on.
        doing: what is done before the nodes are.
    """

    nodes: dict[str, Progress]
    on_event: OnEvent
    slots: int = 1
    dashboard: str = ""
    doing: str = ""

    def tell(self, event: str, node: str | None = None, **details: Any) -> None:
        """Hand an event on."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "event": event, **({} if node is None else {"node": node}), **details}
        self.on_event(record)

    def started(self, name: str) -> None:
        progress = self.nodes[name]
        progress.state, progress.since, progress.share = "running", time.monotonic(), 0.0
        self.tell("started", name)

    def advanced(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Take in what a running node reports."""
        progress = self.nodes[name]
        progress.speed = numbers.get("env_steps_per_second", progress.speed)
        if numbers.get("to_play"):
            progress.share = numbers["played"] / numbers["to_play"]
        elif "env_steps" in numbers:
            progress.share = min(numbers["env_steps"] / progress.node.env_steps, 1.0)

    def ended(
        self, name: str, state: State, *, seconds: float | None = None, error: str = "", log: str = ""
    ) -> None:
        progress = self.nodes[name]
        progress.state, progress.seconds, progress.error, progress.log = state, seconds, error, log
        details = {"seconds": seconds, "error": error, "log": log}
        self.tell(state, name, **{key: value for key, value in details.items() if value})

    def restarted(self, name: str, *, error: str, log: str) -> None:
        progress = self.nodes[name]
        progress.restarts += 1
        progress.state = "waiting"
        self.tell("restarted", name, error=error, log=log)

    def count(self, state: State) -> int:
        return sum(progress.state == state for progress in self.nodes.values())

    @property
    def left(self) -> float:
        """Seconds until all is done."""
        remaining = [progress.left for progress in self.nodes.values()]
        return max(sum(remaining) / max(self.slots, 1), max(remaining, default=0.0))
