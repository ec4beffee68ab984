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
from marl_aajr.report import Incident, Notes, Reference, write_report
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.progress import StudyPlan
from marl_aajr.study.runs import StudyRun
from marl_aajr.study.study_config import StudyConfig
from marl_aajr.study.study_pool import pool_doubts
from marl_aajr.study.tuning import budgets
from marl_aajr.training.files import replaced
from marl_aajr.training.run_directory import disturbed

_TEXTS = (
    "study",
    "run",
    "environment",
    "method",
    "config",
    "team",
    "suite",
    "actions",
    "opponent",
    "attack",
    "settings",
)
_WHOLE_NUMBERS = ("seed", "env_steps", "restarts", "evaluation_seed", "episodes")
_NUMBERS = ("train_seconds", "epsilon", "return", "low", "high", "success_rate")

SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in (*_TEXTS, "budget")),
        *((name, pyarrow.int64()) for name in _WHOLE_NUMBERS),
        *((name, pyarrow.float64()) for name in _NUMBERS),
        ("agents", pyarrow.list_(pyarrow.string())),
        ("worst", pyarrow.bool_()),
        ("returns", pyarrow.list_(pyarrow.float64())),
        ("metrics", pyarrow.map_(pyarrow.string(), pyarrow.float64())),
    ]
)
"""One row per run, kind of actions, attack and size; clean rows have attack `none` and epsilon 0, those
with adversarial agents (`traitor`, `opponent`, `random`, `idle`, `partner`) no epsilon. `opponent` is the
member of the pool that plays the other teams, or `own`: the side that the team has trained with. Runs ×
opponents × attacks are the matrix of cross-play. `config` is JSON,
`worst` marks what was chosen on other episodes, `returns` has one number per episode, and `metrics` the means
of what the environment reports beside rewards, by name."""


def write_page(plan: StudyPlan) -> Path:
    """Write `report.html` about the evaluated runs of a study, and what became of its nodes."""
    study, folder = plan.study, plan.folder
    evaluated = [run for run in plan.runs if folder.evaluation_files(run)]
    missing = [run.name for run in plan.runs if run not in evaluated]
    cut = f"{len(missing)} of {len(plan.runs)} runs are not finished or not evaluated: {', '.join(missing)}."
    events = folder.events()
    notes = Notes(
        summary=study.summary,
        command=shlex.join(["marl-aajr", "study", str(_from_here(plan.source.path))]),
        tuning=budgets(study, folder),
        restarts=list(_restarts(plan.nodes, folder)),
        failures=list(_failures(plan.nodes, folder)),
        cut=[cut] if missing else [],
        doubts=list(pool_doubts(study)),
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

    Evaluations have no directory, and training has another one on another node without a shared disk.
    """
    restarts = [event for event in folder.events() if event["event"] == "restarted"]
    for name, node in nodes.items():
        happened = [] if node.kind == "evaluate" else folder.trained(node).events()
        faults = [_in_words(event) for event in happened if event.get("after") != "interrupted"]
        seen = [event["error"] for event in restarts if event["node"] == name]
        faults = faults or [f"was begun again after {error}" for error in seen]
        log = str(_from_here(folder.log(name))) if folder.log(name).is_file() else ""
        for what, times in Counter(faults).items():
            yield Incident(run=name, what=what, times=times, log=log)


def _in_words(event: Mapping[str, Any]) -> str:
    """A line of `events.jsonl` in words; see `marl_aajr.training.run_directory`."""
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
    if changed := [run.name for run in runs if disturbed(folder.run(run.name).events())]:
        yield (
            f"Env runners were lost in {', '.join(changed)}: what was sampled from then on depends on when, "
            "so these runs would not give the same numbers again."
        )
    if threads := [run.name for run in runs if run.config.resources.torch_threads != 1]:
        yield f"Runs with several threads of torch depend on the machine: {', '.join(threads)}."


def write_results(name: str, runs: Iterable[StudyRun], folder: StudyFolder) -> Path:
    """Write the table of evaluated runs of the study of this name to `results.parquet`."""
    rows = [{"study": name, **row} for run in runs for row in _rows(run, folder)]
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
        "method": run.config.method.label,
        "seed": run.config.seed,
        "config": run.config.model_dump_json(),
        "env_steps": last["env_steps"],
        "train_seconds": last["seconds"],
        "restarts": sum(event["event"] != "env_runners_lost" for event in directory.events()),
    }
    for file in folder.evaluation_files(run):
        found = Evaluation.model_validate_json(file.read_text(encoding="utf-8"))
        common |= {"team": found.team, "suite": found.suite, "episodes": found.episodes}
        common |= {"evaluation_seed": found.seed, "agents": list(found.agents)}
        for result in found.results:
            yield from ({**common, **row} for row in outcomes(result))


def outcomes(result: ActionsResult) -> Iterator[dict[str, Any]]:
    """The clean row, the attacked ones and other threats against every opponent, and adversarial agents."""

    def row(outcome: Outcome, attack: str, settings: str, **more: Any) -> dict[str, Any]:
        columns = {"actions": result.actions, "attack": attack, "settings": settings}
        numbers = {"return": outcome.mean, "low": outcome.low, "high": outcome.high}
        metrics = {name: metric.mean for name, metric in outcome.metrics.items()}
        return {**columns, **numbers, "returns": list(outcome.returns), "metrics": metrics, **more}

    for side, rows in result.sides.items():
        worst = {found.attack for found in rows.worst}
        yield row(rows.clean, "none", "", opponent=side, worst=False, epsilon=0.0)
        for each in rows.attacks:
            yield row(
                each,
                each.attack.name,
                each.attack.described,
                opponent=side,
                worst=each.attack in worst,
                epsilon=each.epsilon,
                agents=list(each.agents),
                budget=str(each.attacked_steps or "every step"),
                success_rate=each.success_rate,
            )
        for threat in rows.threats:
            yield row(
                threat, threat.name, threat.label, opponent=side, worst=False, agents=list(threat.agents)
            )
        for other in rows.adversarial_agents:
            how = str(other.training or "") if other.kind != "partner" else other.source
            yield row(other, other.kind, how, opponent=side, worst=other.worst, agents=list(other.agents))
