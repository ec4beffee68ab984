"""A study from its file to its report; what exists already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marl_aajr.evaluation.protocol import Suite, load_suite
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.study.config import StudyConfig, load_study
from marl_aajr.study.estimate import Estimate, duration, estimate, tuning_seconds
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node, chosen, graph
from marl_aajr.study.loggers import callbacks_for, check_loggers
from marl_aajr.study.placement import check_fits, cluster_for, dashboard
from marl_aajr.study.runs import Run, check_axes, runs
from marl_aajr.study.storage import Storage
from marl_aajr.study.tuning import budgets, check_decisions, check_tuning, decided, replay, tune_study
from marl_aajr.study.watch import Board, OnEvent, Progress
from marl_aajr.training.files import YamlSource
from marl_aajr.victims import load_victim


@dataclass(frozen=True)
class Plan:
    """A study that has been checked.

    Attributes:
        study: as it was asked for.
        source: the file.
        folder: where it lies.
        runs: all of them.
        nodes: what is to be done, needs first; only what `only` asked for.
    """

    study: StudyConfig
    source: YamlSource
    folder: StudyFolder
    runs: tuple[Run, ...]
    nodes: Mapping[str, Node]


def prepare(
    file: Path,
    *,
    out: Path | None = None,
    only: str | None = None,
    overrides: Mapping[str, tuple[Any, str]] | None = None,
) -> Plan:
    """Read a study and find everything that is wrong with it, without Ray.

    Nothing is written, but for what is fetched from the study's storage into its folder.

    Args:
        file: the study.
        out: its folder; None: `studies/NAME`.
        only: pattern of run names.
        overrides: as for `load_study`.

    Raises:
        ValueError: one line per problem, with the line of the file.
    """
    study, source = load_study(file, overrides=overrides)
    suite = _suite(study, source)
    folder = StudyFolder(out or Path("studies") / study.name)
    check_axes(study, source)
    check_tuning(study, source)
    check_loggers(study, source)
    folder.check_same(study, source)
    if (storage := _storage(study, source)) is not None:
        storage.pull("", folder.path)
        folder.check_same(study, source)
    check_decisions(study, folder, source)
    found = runs(study, source, decided(study, folder))
    folder.check_runs(found, source)
    nodes = graph(study, found, suite)
    folder.judgements.check(nodes.values(), source)
    _check_playable(found, source)
    _check_agents(study, source)
    _check_policies(found, source)
    return Plan(study, source, folder, found, chosen(nodes, only))


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
        is_file = name.endswith((".yaml", ".yml"))
        return load_suite(source.path.parent / name if is_file else name)
    except ValueError as error:
        raise ValueError(f"{source.where(('evaluation', 'suite'))}: evaluation.suite: {error}") from None


def _check_playable(runs: tuple[Run, ...], source: YamlSource) -> None:
    """What only Ray and the environment know, once for runs that differ in the seed alone."""
    from marl_aajr.training.algorithm import build_config
    from marl_aajr.training.capacity import bundles

    seen: set[tuple[str, str]] = set()
    problems: dict[str, None] = {}
    for run in runs:
        key = (run.variant.name, repr(run.point))
        if key in seen:
            continue
        seen.add(key)
        try:
            build_config(run.config)
        except ValueError as error:
            problems[f"{run.where('env', source)}: {run.name}: {error}"] = None
        if not all(any(each.values()) for each in bundles(run.config.resources)):
            problems[
                f"{run.where('resources', source)}: resources: expected some CPU or GPU for every env runner "
                "and learner, to be reserved for it, got none; raise cpus_per_env_runner or cpus_per_learner"
            ] = None
    if problems:
        raise ValueError("\n".join(problems))


def _check_agents(study: StudyConfig, source: YamlSource) -> None:
    """Whether the teams and agents that are named play, and adversaries lie to all whom judgements attack."""
    for e, environment in enumerate(study.environments):
        game = resolve(environment.name, environment.kwargs).make()
        teams = dict(game.teams)
        game.close()
        if environment.team is not None and environment.team not in teams.values():
            raise ValueError(
                f"{source.where(('environments', e, 'team'))}: environments.{e}.team: expected one of "
                f"{', '.join(dict.fromkeys(teams.values()))}, got {environment.team!r}"
            )
        for a, adversary in enumerate(study.adversaries):
            if strangers := [agent for agent in adversary.agents or () if agent not in teams]:
                raise ValueError(
                    f"{source.where(('adversaries', a, 'agents'))}: adversaries.{a}.agents: expected agents "
                    f"of {environment.title}, {', '.join(teams)}, got {', '.join(strangers)}"
                )
            judged = choose_agents(teams, environment.team, None)
            if adversary.observes and adversary.agents and set(judged) - set(adversary.agents):
                raise ValueError(
                    f"{source.where(('adversaries', a, 'agents'))}: adversaries.{a}.agents: expected all "
                    f"who are lied to when the runs are judged, {', '.join(judged)}, got "
                    f"{', '.join(adversary.agents)}; leave them out"
                )


def _check_policies(runs: tuple[Run, ...], source: YamlSource) -> None:
    """Whether the policies are there that runs begin with."""
    first = {run.config.initial_policy: run for run in reversed(runs)}
    for policy, run in first.items():
        try:
            _ = None if policy is None else load_victim(policy)
        except ValueError as error:
            raise ValueError(f"{run.where('initial_policy', source)}: initial_policy: {error}") from None


@contextmanager
def on_cluster(plan: Plan) -> Iterator[list[dict[str, float]]]:
    """Ray within this block, on which what is left has been seen to fit; the CPUs and GPUs of each node.

    Raises:
        ValueError: no Ray at the address, or one that is too small.
    """
    from marl_aajr.study.execution import told

    with told(), cluster_for(plan.study, plan.source) as nodes:
        trained = [node for node in plan.nodes.values() if node.kind == "train"]
        left = [node.run for node in trained if not plan.folder.done(node)]
        check_fits(left, nodes, plan.source)
        yield nodes


def expected(plan: Plan, nodes: list[dict[str, float]]) -> tuple[Estimate, float]:
    """What every node of the plan will take, and all of them together on these machines, in seconds."""
    estimated = estimate(plan.nodes, plan.folder)
    cpus = sum(node["CPU"] for node in nodes)
    slots = plan.study.max_concurrent
    tuning = tuning_seconds(plan.study, plan.folder) / min(cpus, slots or cpus)
    return estimated, tuning + duration(plan.nodes, estimated, cpus=cpus, slots=slots)


def board_for(plan: Plan, nodes: Sequence[Mapping[str, float]], on_event: OnEvent) -> Board:
    """What the watchers of a study look at."""
    estimated = estimate(plan.nodes, plan.folder)

    def hand_on(event: dict[str, Any]) -> None:
        plan.folder.add_event(event)
        on_event(event)

    progress = {
        name: Progress(
            node,
            state="finished" if plan.folder.done(node) else "waiting",
            expected=estimated.seconds[name],
        )
        for name, node in plan.nodes.items()
    }
    room = max(int(sum(node["CPU"] for node in nodes)), 1)
    slots = min(room, plan.study.max_concurrent or room)
    return Board(progress, hand_on, slots=slots, dashboard=dashboard())


def run_study(plan: Plan, board: Board, *, should_stop: Callable[[], bool], again: bool = False) -> None:
    """Do what is left of a study, and write its table and report; within `on_cluster`.

    Args:
        plan: the study.
        board: kept up to date.
        should_stop: once it says yes, what runs ends at its next iteration and nothing else is started.
        again: first repeat the tuning's trials as they were decided, and compare their scores.
    """
    with plan.folder.begun(plan.study):
        _run(plan, board, should_stop=should_stop, again=again)


def _run(plan: Plan, board: Board, *, should_stop: Callable[[], bool], again: bool) -> None:
    started = time.perf_counter()
    board.tell("study", runs=len(plan.runs), left=board.count("waiting"))
    if again:
        replay(plan.study, plan.folder, board)
    plan = _tuned(plan, board, should_stop=should_stop)
    if board.count("waiting") and not should_stop():
        _execute(plan, board, should_stop=should_stop)
    board.tell(
        "session",
        seconds=time.perf_counter() - started,
        finished=board.count("finished"),
        failed=board.count("failed"),
        impossible=board.count("impossible"),
    )
    _write(plan, board)


def _tuned(plan: Plan, board: Board, *, should_stop: Callable[[], bool]) -> Plan:
    """The plan with the settings that tuning has found."""
    if plan.study.tune is None:
        return plan
    tune_study(plan.study, plan.folder, board, should_stop=should_stop)
    found = runs(plan.study, plan.source, decided(plan.study, plan.folder))
    every = graph(plan.study, found, _suite(plan.study, plan.source))
    nodes = {name: every[name] for name in plan.nodes}
    for name, node in nodes.items():
        board.nodes[name].node = node
    return replace(plan, runs=found, nodes=nodes)


def _execute(plan: Plan, board: Board, *, should_stop: Callable[[], bool]) -> None:
    from marl_aajr.study.execution import execute

    study = plan.study
    storage = _storage(study, plan.source)
    if storage is not None:
        for file in (plan.folder.study_file, plan.folder.identity_file):
            storage.push_file(file, file.name)
    plan.folder.judgements.drop_outdated(plan.nodes.values())
    execute(
        plan.nodes,
        plan.folder,
        board,
        storage=storage,
        retries=study.retries,
        max_concurrent=study.max_concurrent,
        callbacks=callbacks_for(study),
        should_stop=should_stop,
    )
    if storage is not None:
        storage.pull("", plan.folder.path)


def _write(plan: Plan, board: Board) -> None:
    """The table and the page of what has been judged so far."""
    from marl_aajr.study.report import write_page
    from marl_aajr.study.results import write_results

    study, folder = plan.study, plan.folder
    if any(map(folder.judgements.evaluations, plan.runs)):
        table = write_results(study.name, plan.runs, folder)
        page = write_page(
            study, plan.runs, plan.nodes, folder, file=plan.source.path, tuning=budgets(study, folder)
        )
        board.tell("written", table=str(table), report=str(page))
