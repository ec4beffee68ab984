"""The tables of an experiment's folder: gathered from studies, and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from minimax_verdicts import INNER, Rows, label

from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.runs import runs as runs_of
from marl_aajr.study.study_config import load_study
from marl_aajr.training.run_directory import RunDirectory

AGAIN = "inner_loop.parquet"
"""Of minimax: the curves of runs whose inner loop was measured again, on steps drawn at random."""


def collect(studies: Sequence[Path], folder: Path) -> None:
    """Write the curves of finished runs, a row for each iteration and module, and the results of minimax."""
    runs = [run for study in map(StudyFolder, studies) for run in _in_its_order(study)]
    curves = [row for run in runs if run.is_finished for row in _curves(run)]
    found = {"training.parquet": pyarrow.Table.from_pylist(curves)}
    if folder.name != "pilot":
        found["results.parquet"] = results_of(studies)
    for name, table in found.items():
        kept = _of_other_games(folder / name, table)
        pyarrow.parquet.write_table(
            pyarrow.concat_tables([kept, table], promote_options="default"), folder / name
        )


def results_of(studies: Sequence[Path]) -> pyarrow.Table:
    """The results of some studies without single episodes."""
    tables = [pyarrow.parquet.read_table(study / "results.parquet") for study in studies]
    return pyarrow.concat_tables(tables, promote_options="default").drop_columns(["returns"])


def _of_other_games(file: Path, table: pyarrow.Table) -> pyarrow.Table:
    """The rows of a table of before, but for those of games that another table has."""
    if not file.exists():
        return table.slice(0, 0)
    before = pyarrow.parquet.read_table(file)
    played = {game_of(config) for config in table["config"].unique().to_pylist()}
    own = {config: game_of(config) not in played for config in before["config"].unique().to_pylist()}
    return before.filter([own[config] for config in before["config"].to_pylist()])


def game_of(config: str) -> str:
    """The name of the game of a run's configuration, as JSON."""
    name: str = json.loads(config)["env"]["name"]
    return name.rpartition(".")[2]


def collect_again(runs: Sequence[Path], folder: Path) -> None:
    """Add the curves of these runs, whose inner loop was measured again, to those of others."""
    before = pyarrow.parquet.read_table(folder / AGAIN).to_pylist()
    names = {run.name for run in runs}
    curves = [row for run in map(RunDirectory, runs) for row in _curves(run)]
    rows = [row for row in before if row["run"] not in names] + curves
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / AGAIN)


def _in_its_order(folder: StudyFolder) -> list[RunDirectory]:
    study, source = load_study(folder.study_file)
    return [folder.run(run.name) for run in runs_of(study, source, folder.tuned(study))]


def _curves(run: RunDirectory) -> list[dict[str, Any]]:
    rows = []
    common = {"run": run.path.name, "config": run.config().model_dump_json()}
    for record in run.metrics():
        known = {name: record[name] for name in ("iteration", "env_steps", "seconds", "return_mean")}
        attack = record.get("attack") or {}
        for module, metrics in record["modules"].items():
            gains = [value for name, value in metrics.items() if name.endswith("/gain_mean")]
            found = {"entropy": metrics["entropy"], "logit_scale": metrics.get("logit_scale")}
            found |= {name: attack.get(name) for name in INNER} | {"gain": gains[0] if gains else None}
            rows.append(common | known | {"module": module} | found)
    return rows


def read(file: Path) -> Rows:
    """The rows of a table, with what their run's configuration says."""
    rows = pyarrow.parquet.read_table(file).to_pylist()
    runs = {config: json.loads(config) for config in {row["config"] for row in rows}}
    return [
        row
        | {
            "label": label(runs[row["config"]]),
            "seed": runs[row["config"]]["seed"],
            "of_steps": runs[row["config"]]["env_steps"],
            "game": game_of(row["config"]),
        }
        for row in rows
    ]
