"""A study from its file to its report; what exists already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from marl_aajr.evaluation.protocol import Suite, load_suite
from marl_aajr.study import validation
from marl_aajr.study.execution import execute, tune_environment
from marl_aajr.study.folder import Storage, StudyFolder
from marl_aajr.study.graph import Node, chosen, graph
from marl_aajr.study.progress import (
    Forecast,
    GridProgress,
    NodeProgress,
    OnEvent,
    State,
    StudyPlan,
    duration,
    forecast,
    tuning_seconds,
)
from marl_aajr.study.report import write_page, write_results
from marl_aajr.study.runs import StudyRun, check_axes, runs
from marl_aajr.study.study_config import StudyConfig, load_study
from marl_aajr.study.study_pool import Pool, mixed, pool, trained_for
from marl_aajr.study.tuning import check_tuning, replay, tune_study
from marl_aajr.training.cluster import amounts_of_nodes, ray_for
from marl_aajr.training.files import YamlSource, append_line
from marl_aajr.training.resources import Resources


def prepare(
    file: Path,
    *,
    out: Path | None = None,
    only: str | None = None,
    overrides: Mapping[str, tuple[Any, str]] | None = None,
) -> StudyPlan:
    """Read a study and find everything that is wrong with it, without Ray.

    Nothing is written, but for what is fetched from the study's storage into its folder, by default
    `studies/NAME`. The work may be that on `only` the runs with names of a pattern.

    Raises:
        ValueError: one line per problem, with the line of the file.
    """
    study, source = load_study(file, overrides=overrides)
    folder = StudyFolder(out or Path("studies") / study.name)
    check_axes(study, source)
    check_tuning(study, source)
    validation.check_loggers(study, source)
    validation.check_same(folder, study, source)
    if (storage := _storage(study, source)) is not None:
        storage.pull("", folder.path)
        validation.check_same(folder, study, source)
    validation.check_searches(folder, study, source)
    found = runs(study, source, folder.tuned(study))
    opponents = pool(study, source, tuned=folder.tuned(study))
    every = (*found, *trained_for(opponents))
    validation.check_pool(folder, found, opponents, source)
    validation.check_runs(folder, every, source)
    nodes = _graph(study, source, found, opponents)
    validation.check_evaluations(folder, nodes.values(), source)
    validation.check_playable(every, source)
    validation.check_agents(study, source)
    validation.check_policies(every, source)
    return StudyPlan(study, source, folder, found, chosen(nodes, only))


def _graph(study: StudyConfig, source: YamlSource, found: Sequence[StudyRun], pool: Pool) -> dict[str, Node]:
    return graph(study, found, _suite(study, source), pool=pool, mixed=mixed(study, source))


def _storage(study: StudyConfig, source: YamlSource) -> Storage | None:
    try:
        return None if study.storage is None else Storage(study.storage)
    except ValueError as error:
        raise ValueError(f"{source.where(('storage',))}: {error}") from None


def _suite(study: StudyConfig, source: YamlSource) -> Suite | None:
    name = study.evaluation.suite
    if not isinstance(name, str):
        return name
    try:
        return load_suite(source.path.parent / name if name.endswith((".yaml", ".yml")) else name)
    except ValueError as error:
        raise source.problem(("evaluation", "suite"), str(error)) from None


@contextmanager
def on_cluster(plan: StudyPlan) -> Iterator[list[dict[str, float]]]:
    """Ray within this block, on which what is left has been seen to fit; the CPUs and GPUs of each node."""
    with ExitStack() as stack:
        stack.enter_context(tune_environment())
        try:
            stack.enter_context(ray_for(Resources(address=plan.study.address), own_environments=True))
        except ValueError as error:
            text = str(error).removeprefix("resources.")
            raise ValueError(f"{plan.source.where(('address',))}: {text}") from None
        trained = [node for node in plan.nodes.values() if node.kind == "train"]
        left = [node.run for node in trained if not plan.folder.done(node)]
        nodes = amounts_of_nodes()
        validation.check_fits(left, nodes, plan.source)
        yield nodes


def expected(plan: StudyPlan, nodes: list[dict[str, float]]) -> tuple[Forecast, float]:
    """The seconds of every node of the plan, and of all of them together on these machines."""
    foreseen = forecast(plan.nodes, plan.folder)
    cpus = sum(node["CPU"] for node in nodes)
    slots = plan.study.max_concurrent
    tuning = tuning_seconds(plan.study, plan.folder) / min(cpus, slots or cpus)
    return foreseen, tuning + duration(plan.nodes, foreseen, cpus=cpus, slots=slots)


def progress_of(plan: StudyPlan, nodes: Sequence[Mapping[str, float]], on_event: OnEvent) -> GridProgress:
    """The progress of a study's nodes, for those who watch it."""
    foreseen = forecast(plan.nodes, plan.folder)

    def hand_on(event: dict[str, Any]) -> None:
        append_line(plan.folder.events_file, event)
        on_event(event)

    each = {
        name: NodeProgress(node, "finished" if plan.folder.done(node) else "waiting", foreseen.seconds[name])
        for name, node in plan.nodes.items()
    }
    room = max(int(sum(node["CPU"] for node in nodes)), 1)
    slots = min(room, plan.study.max_concurrent or room)
    url = ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False).dashboard_url
    tuning = tuning_seconds(plan.study, plan.folder)
    return GridProgress(each, hand_on, slots=slots, dashboard=f"http://{url}" if url else "", tuning=tuning)


def run_study(
    plan: StudyPlan, progress: GridProgress, *, should_stop: Callable[[], bool], again: bool = False
) -> None:
    """Do what is left of a study, and write its table and report; within `on_cluster`.

    Once `should_stop` says yes, what runs ends at its next iteration and nothing else is started. With
    `again` the tuning's trials are first repeated as they were decided, and their scores compared.
    """
    with plan.folder.begun(plan.study):
        started = time.perf_counter()
        progress.emit("study", runs=len(plan.runs), left=progress.count("waiting"))
        if again:
            replay(plan.study, plan.folder, progress)
        plan = _tuned(plan, progress, should_stop=should_stop)
        if progress.count("waiting") and not should_stop():
            _execute(plan, progress, should_stop=should_stop)
        states: tuple[State, ...] = ("finished", "failed", "impossible")
        counts: dict[str, Any] = {state: progress.count(state) for state in states}
        progress.emit("session", seconds=time.perf_counter() - started, **counts)
        _write(plan, progress)


def _tuned(plan: StudyPlan, progress: GridProgress, *, should_stop: Callable[[], bool]) -> StudyPlan:
    """The study with the settings that tuning has found."""
    if plan.study.tune is None:
        return plan
    tune_study(plan.study, plan.folder, progress, should_stop=should_stop)
    tuned = plan.folder.tuned(plan.study)
    found = runs(plan.study, plan.source, tuned)
    opponents = pool(plan.study, plan.source, tuned=tuned)
    every = _graph(plan.study, plan.source, found, opponents)
    nodes = {name: every[name] for name in plan.nodes}
    for name, node in nodes.items():
        progress.nodes[name].node = node
    return replace(plan, runs=found, nodes=nodes)


def _execute(plan: StudyPlan, progress: GridProgress, *, should_stop: Callable[[], bool]) -> None:
    study = plan.study
    storage = _storage(study, plan.source)
    if storage is not None:
        for file in (plan.folder.study_file, plan.folder.identity_file):
            storage.push_file(file, file.name)
    plan.folder.drop_outdated(plan.nodes.values())
    execute(plan.nodes, plan.folder, progress, storage=storage, study=study, should_stop=should_stop)
    if storage is not None:
        storage.pull("", plan.folder.path)


def _write(plan: StudyPlan, progress: GridProgress) -> None:
    """The table and the page of what has been evaluated so far."""
    if evaluated := [run for run in plan.runs if plan.folder.evaluation_files(run)]:
        table = write_results(plan.study.name, evaluated, plan.folder)
        page = write_page(plan)
        progress.emit("written", table=str(table), report=str(page))
