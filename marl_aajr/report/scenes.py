"""Where runs are compared: in one environment, by the return of one side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from marl_aajr.evaluation.result import Evaluation
from marl_aajr.report.conditions import keys_of
from marl_aajr.report.records import RunRecord


@dataclass(frozen=True, order=True)
class Scene:
    """Where returns have a meaning in common: an environment, and the side whose return it is.

    Attributes:
        environment: its name, and its arguments as JSON where there are any.
        team: the side; empty where there is only one.
    """

    environment: str
    team: str = ""
    norm: str = ""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scene:
        """The scene of an evaluation."""
        kwargs = json.dumps(evaluation.env.kwargs, sort_keys=True) if evaluation.env.kwargs else ""
        several = len(set(evaluation.teams.values())) > 1
        return cls(f"{evaluation.env.name} {kwargs}".strip(), evaluation.team if several else "")

    def __str__(self) -> str:
        return f"{self.environment}, {self.team}" if self.team else self.environment

    @property
    def short(self) -> str:
        """Without the package, for headings."""
        name, _, kwargs = self.environment.partition(" ")
        return f"{name.rpartition('.')[2]} {kwargs}".strip() + (f", {self.team}" if self.team else "")


def scenes(records: Sequence[RunRecord]) -> dict[Scene, list[RunRecord]]:
    """The runs of each scene, with their evaluations in it, in order of the scenes' names.

    Left out are a scene of a single run that is compared in another scene, where nothing would be compared;
    and, beside one with attacks, a scene in which the runs share none.
    """
    found: dict[Scene, list[RunRecord]] = defaultdict(list)
    for record in records:
        own: dict[Scene, dict[str, Evaluation]] = defaultdict(dict)
        for name, evaluation in record.evaluations.items():
            own[Scene.of(evaluation)][name] = evaluation
        for scene, evaluations in own.items():
            found[scene].append(replace(record, evaluations=evaluations))
    paths = {scene: {run.path for run in runs} for scene, runs in found.items()}
    shown = [
        scene
        for scene in sorted(found)
        if len(paths[scene]) > 1 or not any(paths[scene] < others for others in paths.values())
    ]
    attacked = [scene for scene in shown if share_attacks([run.evaluations.values() for run in found[scene]])]
    return {scene: found[scene] for scene in attacked or shown}


def share_attacks(per_run: Sequence[Iterable[Evaluation]]) -> bool:
    """Whether some attack of some size is in the evaluations of every run."""
    keys = [set(keys_of([(e.results[0], e) for e in evaluations]).values()) for evaluations in per_run]
    return bool(set.intersection(*keys))
