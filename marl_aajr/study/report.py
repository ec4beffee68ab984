"""The page of a study, and one table of every return for whoever wants other statistics.

The page has what only the study knows: budgets of tuning, restarts, failures, caveats.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.evaluation.result import ActionsResult, Evaluation
from marl_aajr.report import Incident, Notes, Reference, Tuning, write_report
from marl_aajr.study.config import StudyConfig
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import StudyRun
from marl_aajr.training.files import replaced
from marl_aajr.training.run_directory import RunDirectory, disturbed

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


def write_page(
    study: StudyConfig,
    runs: Sequence[StudyRun],
    nodes: Mapping[str, Node],
    folder: StudyFolder,
    *,
    file: Path,
    tuning: Sequence[Tuning] = (),
) -> Path:
    """Write `report.html` about all runs that have been evaluated.

    Args:
        study: the study.
        runs: all of its runs.
        nodes: all of its work, for what became of it.
        folder: of the study.
        file: that it was read from.
        tuning: the budget of each method.
    """
    evaluated = [run for run in runs if folder.evaluated.files(run)]
    events = folder.events()
    notes = Notes(
        summary=study.summary,
        command=shlex.join(["marl-aajr", "study", str(_from_here(file))]),
        tuning=tuning,
        restarts=list(_restarts(nodes, folder)),
        failures=list(_failures(nodes, folder)),
        cut=_cut(runs, evaluated),
        caveats=list(_caveats(study, evaluated, folder)),
        seconds=sum(event.get("seconds", 0.0) for event in events if event["event"] == "session"),
    )
    return write_report(
        [_from_here(folder.run(run.name).path) for run in evaluated],
        folder.report,
        title=study.title,
        notes=notes,
        references={
            entry.name: Reference(*entry.reference)
            for entry in study.environments
            if entry.reference is not None
        },
        film=study.film,
    )


def _from_here(path: Path) -> Path:
    """Seen from the working directory where that is above it, so that a page names no machine's folders."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _restarts(nodes: Mapping[str, Node], folder: StudyFolder) -> Iterator[Incident]:
    """The restarts after faults, as directories of runs record them, else as Tune saw them.

    Evaluations have no directory, and training has another one on another node without a shared disk. A
    stop that was asked for is no fault.
    """
    again = [event for event in folder.events() if event["event"] == "restarted"]
    for name, node in nodes.items():
        happened = [] if node.kind == "evaluate" else folder.trained(node).events()
        faults = [_in_words(event) for event in happened if event.get("after") != "interrupted"]
        faults = faults or [
            f"was begun again after {event['error']}" for event in again if event["node"] == name
        ]
        log = folder.log(name)
        for what, times in Counter(faults).items():
            yield Incident(
                run=name, what=what, times=times, log=str(_from_here(log)) if log.is_file() else ""
            )


def _in_words(event: Mapping[str, Any]) -> str:
    """A line of `events.jsonl` in words; see `marl_aajr.training.metrics`."""
    if event["event"] == "env_runners_lost":
        return "went on without env runners that were lost"
    if event["event"] == "env_runners_restarted":
        return "lost env runners were replaced"
    killed = event.get("after") == "running"
    why = event.get("error") or ("its process was killed" if killed else "it failed")
    other = ", ".join(f"{name} {version}" for name, version in event.get("versions", {}).items())
    return f"went on from its last checkpoint after {why}" + (f", now with {other}" if other else "")


def _failures(nodes: Mapping[str, Node], folder: StudyFolder) -> Iterator[Incident]:
    """The nodes that ended in an error, and have not been done since."""
    last = {event["node"]: event for event in folder.events() if "node" in event}
    for name, event in last.items():
        if event["event"] in ("failed", "impossible") and name in nodes and not folder.done(nodes[name]):
            log = str(_from_here(Path(event["log"]))) if event.get("log") else ""
            yield Incident(run=name, what=event.get("error", "it failed"), log=log)


def _cut(runs: Sequence[StudyRun], evaluated: Sequence[StudyRun]) -> list[str]:
    missing = [run.name for run in runs if run not in evaluated]
    if not missing:
        return []
    return [f"{len(missing)} of {len(runs)} runs are not finished or not evaluated: {', '.join(missing)}."]


def _caveats(study: StudyConfig, runs: Sequence[StudyRun], folder: StudyFolder) -> Iterator[str]:
    if study.tune is not None:
        yield (
            "Optuna's proposals and ASHA's stops depend on the order in which trials end; they are recorded "
            "in tuning/ and can be repeated with --replay."
        )
    if asynchronous := [run.name for run in runs if not run.config.repeatable]:
        yield (
            "What asynchronous algorithms learn from depends on how fast each process was, so these runs "
            f"would not give the same numbers again: {', '.join(asynchronous)}."
        )
    changed = [run.name for run in runs if disturbed(RunDirectory(folder.run(run.name).path).events())]
    if changed:
        yield (
            f"Env runners were lost in {', '.join(changed)}: what was sampled from then on depends on when, "
            "so these runs would not give the same numbers again."
        )
    if threads := [run.name for run in runs if run.config.resources.torch_threads > 1]:
        yield f"Runs with several threads of torch depend on the machine: {', '.join(threads)}."


def write_results(name: str, runs: Iterable[StudyRun], folder: StudyFolder) -> Path:
    """Write the table of the evaluated runs to `results.parquet`.

    Args:
        name: the study's.
        runs: of the study, in their order.
        folder: the study's.
    """
    evaluated = [run for run in runs if folder.evaluated.files(run)]
    rows = [{"study": name, **row} for run in evaluated for row in _rows(run, folder)]
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
    with replaced(folder.results) as file:
        pyarrow.parquet.write_table(table, file)
    return folder.results


def _rows(run: StudyRun, folder: StudyFolder) -> Iterator[dict[str, Any]]:
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
    for file in folder.evaluated.files(run):
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
