"""The page of a study, with what only the study knows: budgets of tuning, restarts, failures, caveats."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from marl_aajr.report import Incident, Notes, Reference, Tuning, write_report
from marl_aajr.study.config import StudyConfig
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import Run
from marl_aajr.training.run_directory import RunDirectory, disturbed


def write_page(
    study: StudyConfig,
    runs: Sequence[Run],
    nodes: Mapping[str, Node],
    folder: StudyFolder,
    *,
    file: Path,
    tuning: Sequence[Tuning] = (),
) -> Path:
    """Write `report.html` about all runs that have been judged.

    Args:
        study: the study.
        runs: all of its runs.
        nodes: all of its work, for what became of it.
        folder: where it lies.
        file: that it was read from.
        tuning: the budget of each method.
    """
    judged = [run for run in runs if folder.judgements.evaluations(run)]
    events = folder.events()
    notes = Notes(
        summary=study.summary,
        command=shlex.join(["marl-aajr", "study", str(_from_here(file))]),
        tuning=tuning,
        restarts=list(_restarts(nodes, folder)),
        failures=list(_failures(nodes, folder)),
        cut=_cut(runs, judged),
        caveats=list(_caveats(study, judged, folder)),
        seconds=sum(event.get("seconds", 0.0) for event in events if event["event"] == "session"),
    )
    return write_report(
        [_from_here(folder.run(run.name).path) for run in judged],
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
    """What went on after a fault: as its directory tells it, else as Tune saw it.

    Judgements have no directory, and training has another one on another node without a shared disk. A stop
    that was asked for is no fault.
    """
    again = [event for event in folder.events() if event["event"] == "restarted"]
    for name, node in nodes.items():
        happened = [] if node.kind == "judge" else folder.trained(node).events()
        told = [_told(event) for event in happened if event.get("after") != "interrupted"]
        told = told or [f"was begun again after {event['error']}" for event in again if event["node"] == name]
        log = folder.log(name)
        for what, times in Counter(told).items():
            yield Incident(
                run=name, what=what, times=times, log=str(_from_here(log)) if log.is_file() else ""
            )


def _told(event: Mapping[str, Any]) -> str:
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
    """What ended in an error, and has not been done since."""
    last = {event["node"]: event for event in folder.events() if "node" in event}
    for name, event in last.items():
        if event["event"] in ("failed", "impossible") and name in nodes and not folder.done(nodes[name]):
            log = str(_from_here(Path(event["log"]))) if event.get("log") else ""
            yield Incident(run=name, what=event.get("error", "it failed"), log=log)


def _cut(runs: Sequence[Run], judged: Sequence[Run]) -> list[str]:
    missing = [run.name for run in runs if run not in judged]
    if not missing:
        return []
    return [f"{len(missing)} of {len(runs)} runs are not finished or not judged: {', '.join(missing)}."]


def _caveats(study: StudyConfig, runs: Sequence[Run], folder: StudyFolder) -> Iterator[str]:
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
