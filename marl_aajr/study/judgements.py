"""Which runs of a study have been judged, and by what: one small file for each, beside the runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marl_aajr.study.changes import changed, first_change
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import Run
from marl_aajr.training.files import YamlSource, write_json
from marl_aajr.training.run_directory import RunDirectory


class Judgements:
    """The judgements of a study.

    Args:
        path: their folder.
        runs: the folder of the runs, whose evaluations are what the judgements found.
    """

    def __init__(self, path: Path, runs: Path) -> None:
        self.path = path
        self._runs = runs

    def file(self, run: Run) -> Path:
        """Where `note` writes."""
        return self.path / f"{run.name}.json"

    def evaluations(self, run: Run) -> list[Path]:
        """The files with what the judgement of a run found; none where it has not been judged."""
        found = self._read(run)
        if found is None:
            return []
        files = sorted(RunDirectory(self._runs / run.name).evaluations.glob("*.json"))
        return [file for file in files if file.name == found.get("evaluation", file.name)]

    def done(self, node: Node) -> bool:
        """Whether the judgement is there, by the surrogate that the run has now.

        It has another with more seeds, or methods in another order.
        """
        now = _asked(node)
        then = (self._read(node.run) or {}).get("asked", now)
        return bool(self.evaluations(node.run)) and then["surrogate"] == now["surrogate"]

    def check(self, nodes: Iterable[Node], source: YamlSource) -> None:
        """Whether what is there was judged as the study says now; surrogates aside, see `done`.

        Raises:
            ValueError: by another suite, for another team, or otherwise; names the line.
        """
        for node in nodes:
            if node.kind == "judge" and self.evaluations(node.run):
                now = _asked(node)
                then = (self._read(node.run) or {}).get("asked", now) | {"surrogate": now["surrogate"]}
                if then != now:
                    key, change = first_change("evaluation", then, now)
                    where = node.run.where("env.team", source) if "team" in key else source.where(key)
                    raise changed(f"{where}: {'.'.join(map(str, key))}: {change}", self.path.parent)

    def note(self, node: Node, evaluation: str, what: dict[str, Any]) -> None:
        """Say that a run has been judged.

        Args:
            node: the judgement.
            evaluation: name of the file in the run's evaluations.
            what: more to write down.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.file(node.run), {"asked": _asked(node), "evaluation": evaluation, **what})

    def drop_outdated(self, nodes: Iterable[Node]) -> None:
        """Delete what judgements have found that are to be done again."""
        for node in nodes:
            if node.kind == "judge" and not self.done(node):
                for file in (*self.evaluations(node.run), self.file(node.run)):
                    file.unlink(missing_ok=True)

    def _read(self, run: Run) -> dict[str, Any] | None:
        file = self.file(run)
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _asked(node: Node) -> dict[str, Any]:
    """What a judgement rests on, as JSON reads it back."""
    assert node.evaluation is not None
    assert node.suite is not None
    return node.evaluation.model_dump(mode="json") | {
        "suite": node.suite.model_dump(mode="json"),
        "team": node.run.variant.environment.team,
        "surrogate": None if node.surrogate is None else node.surrogate.name,
        "adversaries": [entry.model_dump(mode="json") for entry in node.faced],
    }
