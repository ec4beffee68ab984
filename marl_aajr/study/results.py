"""Every return of a study in one table, for whoever wants other statistics than the report's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.runs import Run
from marl_aajr.training.files import replaced

SCHEMA = pyarrow.schema(
    [
        ("study", pyarrow.string()),
        ("run", pyarrow.string()),
        ("environment", pyarrow.string()),
        ("method", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("config", pyarrow.string()),
        ("env_steps", pyarrow.int64()),
        ("train_seconds", pyarrow.float64()),
        ("restarts", pyarrow.int64()),
        ("team", pyarrow.string()),
        ("suite", pyarrow.string()),
        ("evaluation_seed", pyarrow.int64()),
        ("episodes", pyarrow.int64()),
        ("actions", pyarrow.string()),
        ("attack", pyarrow.string()),
        ("settings", pyarrow.string()),
        ("epsilon", pyarrow.float64()),
        ("agents", pyarrow.list_(pyarrow.string())),
        ("budget", pyarrow.string()),
        ("return", pyarrow.float64()),
        ("low", pyarrow.float64()),
        ("high", pyarrow.float64()),
        ("success_rate", pyarrow.float64()),
        ("worst", pyarrow.bool_()),
        ("returns", pyarrow.list_(pyarrow.float64())),
    ]
)
"""One row per run, kind of actions, attack and size; clean rows have attack `none` and epsilon 0, those
with adversarial agents (`traitor`, `opponent`, `random`, `idle`) no epsilon. `config` is JSON,
`worst` marks what was chosen on other episodes, `returns` has one number per episode."""


def write_results(name: str, runs: Iterable[Run], folder: StudyFolder) -> Path:
    """Write the table of the judged runs to `results.parquet`.

    Args:
        name: the study's.
        runs: of the study, in their order.
        folder: the study's.
    """
    judged = [run for run in runs if folder.judgements.evaluations(run)]
    rows = [{"study": name, **row} for run in judged for row in _rows(run, folder)]
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
    with replaced(folder.results) as file:
        pyarrow.parquet.write_table(table, file)
    return folder.results


def _rows(run: Run, folder: StudyFolder) -> Iterator[dict[str, Any]]:
    directory = folder.run(run.name)
    last = directory.metrics()[-1]
    common = {
        "run": run.name,
        "environment": run.config.env.name,
        "method": run.config.method.name,
        "seed": run.config.seed,
        "config": run.config.model_dump_json(),
        "env_steps": last["env_steps"],
        "train_seconds": last["seconds"],
        "restarts": sum(event["event"] != "env_runners_lost" for event in directory.events()),
    }
    for file in folder.judgements.evaluations(run):
        found = json.loads(file.read_text(encoding="utf-8"))
        common |= {"team": found["team"], "suite": found["suite"], "episodes": found["episodes"]}
        common |= {"evaluation_seed": found["seed"]}
        for played in (found, *found["others"]):
            for row in outcomes(played):
                yield {**common, "agents": found["agents"], **row}


def outcomes(rows: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The clean row, the attacked ones and those with adversarial agents, of one kind of actions.

    Args:
        rows: an evaluation as it is written, or one of its `others`.
    """
    worst = {(row["attack"], row["settings"], row["epsilon"]) for row in rows["worst"]}
    clean = {"attack": "none", "settings": "", "epsilon": 0.0, **rows["clean"]}
    for row in (clean, *rows["attacks"]):
        chosen = (row["attack"], row["settings"], row["epsilon"]) in worst
        kept = {key: row[key] for key in SCHEMA.names if key in row}
        yield {"actions": rows["actions"], "worst": chosen, **kept}
    for row in rows.get("adversarial_agents", ()):
        kept = {key: row[key] for key in SCHEMA.names if key in row}
        yield {"actions": rows["actions"], "attack": row["kind"], **kept}
