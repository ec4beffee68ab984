"""What happened to a run besides training: ``events.jsonl`` of its directory, absent where nothing did.

One JSON object per line: ``time`` (UTC), ``event``, ``iteration`` and what belongs to the event.

    resumed                 a new process went on from the checkpoint of ``iteration`` (0: from the start);
                            ``after``: the state that the last process left (``running``: it was killed),
                            ``error``: if it failed, ``repeated``: iterations that had to be done again,
                            ``versions``: of the packages that are not those of ``versions.json``
    restarted               the same process did, after a failure; ``error`` and ``repeated`` as above
    env_runners_lost        ``count`` env runners were gone at the end of ``iteration``, the rest went on
    env_runners_restarted   ``count`` env runners that were lost had been restarted by Ray by the end of it

The first two leave no trace in the numbers, which are those of a run that nothing happened to. The others
do: what was sampled without the lost runners, and by new ones, depends on when they were lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from marl_aajr.training.files import append_line

Event = Literal["resumed", "restarted", "env_runners_lost", "env_runners_restarted"]

_DISTURBING: tuple[Event, ...] = ("env_runners_lost", "env_runners_restarted")


def append_event(file: Path, event: Event, *, iteration: int, **details: Any) -> None:
    """Add a line to ``events.jsonl``."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(file, {"time": now, "event": event, "iteration": iteration, **details})


def disturbed(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the run's numbers may differ from those of a run that nothing happened to."""
    lost: list[int] = []
    for event in events:
        if event["event"] in _DISTURBING:
            lost.append(event["iteration"])
        else:
            # What came after was trained again.
            lost = [iteration for iteration in lost if iteration <= event["iteration"]]
    return bool(lost)
