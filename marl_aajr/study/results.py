"""Every return of a study in one table, for whoever wants other statistics than the report's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.result import ActionsResult, Evaluation
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
        found = Evaluation.model_validate_json(file.read_text(encoding="utf-8"))
        common |= {"team": found.team, "suite": found.suite, "episodes": found.episodes}
        common |= {"evaluation_seed": found.seed}
        for result in found.results:
            for row in outcomes(result):
                yield {**common, "agents": list(found.agents), **row}


def outcomes(result: ActionsResult) -> Iterator[dict[str, Any]]:
    """The clean row, the attacked ones and those with adversarial agents, of one kind of actions."""
    worst = {row.attack for row in result.worst}
    yield {
        **_numbers(result.clean),
        "actions": result.actions,
        "attack": "none",
        "settings": "",
        "epsilon": 0.0,
        "worst": False,
    }
    for row in result.attacks:
        yield {
            **_numbers(row),
            "actions": result.actions,
            "attack": row.attack.name,
            "settings": row.attack.described,
            "epsilon": row.epsilon,
            "agents": list(row.agents),
            "budget": str(row.attacked_steps or "every step"),
            "success_rate": row.success_rate,
            "worst": row.attack in worst,
        }
    for other in result.adversarial_agents:
        yield {
            **_numbers(other),
            "actions": result.actions,
            "attack": other.kind,
            "settings": str(other.training or ""),
            "agents": list(other.agents),
            "worst": other.worst,
        }


def _numbers(outcome: Outcome) -> dict[str, Any]:
    """The columns that every row has."""
    return {
        "return": outcome.mean,
        "low": outcome.low,
        "high": outcome.high,
        "returns": list(outcome.returns),
    }
