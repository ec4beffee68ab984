"""One node of a study, done in a process of its own; Ray Tune calls `do_node` there.

Whatever happens to the process, the run directory says how far it came: a node that is started again goes on
from its last checkpoint, to the same numbers.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import is_begun, is_finished
from marl_aajr.adversaries.training import train_adversary
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.evaluation import evaluate, pool_scores
from marl_aajr.evaluation.sources import file_name
from marl_aajr.rollout.environments import resolve
from marl_aajr.study.folder import Storage, StudyFolder, run_exists
from marl_aajr.study.graph import Node
from marl_aajr.study.study_config import EnvironmentEntry
from marl_aajr.training.fields import differences
from marl_aajr.training.metrics import numbers
from marl_aajr.training.run_record import other_versions, software
from marl_aajr.training.trainer import train

_REPORT_SECONDS = 1.0
"""Between two reports: each of them waits for Tune's answer."""

SURROGATE = "another seed of the first method"
"""Source of transferred perturbations: called the same in all runs, so that they can be compared."""


@dataclass(frozen=True)
class StudyLocation:
    """What all processes of a study use: the URI of a storage, or else the folder, which all nodes see."""

    folder: str
    identity: str
    storage: str | None = field(default=None, repr=False)

    def here(self, node: Node) -> StudyFolder:
        """The folder that a node's work is done in on this machine."""
        if self.storage is None:
            return StudyFolder(self.folder)
        name = f"marl-aajr-{Path(self.folder).name}-{self.identity}"
        return StudyFolder(Path(tempfile.gettempdir()) / name / node.name.replace("/", "--"))

    def check_machine(self, expected: Mapping[str, str]) -> None:
        """Refuse a machine that joined the cluster after the study had looked at all of them.

        Raises:
            RuntimeError: it has other versions than those expected, or does not see the study's folder.
        """
        if problems := other_versions(expected, software()):
            raise RuntimeError(
                f"expected {platform.node()} to have the versions of the study's own process, but it "
                f"{', '.join(problems)}; install the same, or take it out of the cluster"
            )
        identity = StudyFolder(self.folder).identity_file
        if self.storage is None and not (
            identity.is_file() and identity.read_text(encoding="utf-8").strip() == self.identity
        ):
            raise RuntimeError(
                f"expected {platform.node()} to see the study's folder {self.folder}, but it does not; use a "
                "disk that all machines share, or give the study a storage"
            )


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """The study is to stop."""


@ray.remote(num_cpus=0)
class StopFlag:
    """Whether the processes of a study should stop at the next good moment.

    Signals reach the driver only. It lives on the driver's node, so that no other node takes it along.
    """

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked


def do_node(
    task: Mapping[str, Any],
    *,
    nodes: Mapping[str, Node],
    location: StudyLocation,
    flag: Any,
    expected: Mapping[str, str],
) -> None:
    """Do the `node` of a task and report `outcome`: finished, interrupted or failed (with `error`).

    What would go wrong again is reported; everything else is raised, for Tune to start the node again. The
    `expected` versions are those of the study's own process, by `software`.
    """
    location.check_machine(expected)
    torch.set_num_threads(1)
    node, reporter = nodes[task["node"]], _Reporter(flag)
    started = time.perf_counter()
    outcome: dict[str, Any] = {"outcome": "finished"}
    try:
        if reporter.stop():
            raise Interrupted
        _perform(node, location, reporter)
    except Interrupted:
        outcome = {"outcome": "interrupted"}
    except (ValueError, NonFiniteError) as error:
        summary = f"{type(error).__name__}: {error}"
        outcome = {"outcome": "failed", "error": summary, "traceback": traceback.format_exc()}
    tune.report({**reporter.numbers, **outcome, "seconds": time.perf_counter() - started})


@dataclass
class _Reporter:
    """Reports to Tune once a second how far the node is, and asks whether to stop."""

    flag: Any
    numbers: dict[str, Any] = field(default_factory=dict)
    _last: float = 0.0

    def iteration(self, record: Mapping[str, Any]) -> None:
        self.numbers = numbers(record)
        if self._due():
            tune.report(self.numbers)

    def stop(self) -> bool:
        return bool(ray.get(self.flag.asked.remote()))

    def played(self, progress: Any) -> None:
        if self._due():
            self.numbers = {"played": progress.done, "to_play": progress.total}
            tune.report(self.numbers)
            if self.stop():
                raise Interrupted

    def _due(self) -> bool:
        due = time.monotonic() - self._last >= _REPORT_SECONDS
        self._last = time.monotonic() if due else self._last
        return due


def _perform(node: Node, location: StudyLocation, reporter: _Reporter) -> None:
    folder = location.here(node)
    storage = None if location.storage is None else Storage(location.storage)
    if storage is not None:
        met = (member.run for member in node.opponents)
        for run in (node.run, node.surrogate, *met, *node.partners):
            if run is not None:
                storage.pull(f"runs/{run.name}", folder.run(run.name).path)
    {"train": _train, "adversary": _adversary, "evaluate": _evaluate}[node.kind](node, folder, reporter)
    if storage is not None:
        storage.push(folder.run(node.run.name).path, f"runs/{node.run.name}")
        if node.kind == "evaluate":
            file = folder.note_file(node.run)
            storage.push_file(file, f"evaluations/{file.name}")
        # What was interrupted, or failed, goes on here from its checkpoint.
        shutil.rmtree(folder.path)
        with suppress(OSError):  # others work beside it
            folder.path.parent.rmdir()


def _train(node: Node, folder: StudyFolder, reporter: _Reporter) -> None:
    config, directory = node.run.config, folder.trained(node)
    there = run_exists(directory)
    if there and directory.status().state == "finished":
        if changes := differences(directory.config(), config):
            raise ValueError(f"expected {directory.path} with the study's settings, got {'; '.join(changes)}")
        return
    train(config, directory.path, resume=there, on_iteration=reporter.iteration, should_stop=reporter.stop)
    if directory.status().state == "interrupted":
        raise Interrupted


def _adversary(node: Node, folder: StudyFolder, reporter: _Reporter) -> None:
    assert node.adversary is not None
    out = folder.trained(node)
    if is_finished(out.path):
        return
    run_exists(out)
    begun = is_begun(out.path)
    train_adversary(
        folder.run(node.run.name).path,
        out=out.path,
        resume=begun,
        overwrite=not begun,
        on_iteration=reporter.iteration,
        should_stop=reporter.stop,
        **dict(against_the_team(node.adversary, node.run.variant.environment)),
    )
    if not is_finished(out.path):
        raise Interrupted


def against_the_team(request: AdversaryRequest, environment: EnvironmentEntry) -> AdversaryRequest:
    """Attack the team that is evaluated, where that is not the one that adversaries choose by themselves."""
    if environment.team is None or request.agents is not None:
        return request
    if request.kind in ("opponent", "best-response"):
        return request.changed(threat={"team": environment.team, **request.threat})
    game = resolve(environment.name, environment.kwargs).make()
    members = [agent for agent, team in game.teams.items() if team == environment.team]
    game.close()
    return request.changed(agents=members)


def _evaluate(node: Node, folder: StudyFolder, reporter: _Reporter) -> None:
    entry = node.evaluation
    assert entry is not None
    assert node.suite is not None
    started, surrogate = time.perf_counter(), node.surrogate
    evaluation = evaluate(
        folder.run(node.run.name).path,
        protocol=entry.protocol(node.suite, team=node.run.variant.environment.team),
        surrogates={} if surrogate is None else {SURROGATE: folder.run(surrogate.name).path},
        adversaries={entry.name: folder.adversary(node.run, entry).path for entry in node.faced},
        opponents={member.name: folder.opponent(member) for member in node.opponents},
        partners={f"s{run.config.seed}": folder.run(run.name).path for run in node.partners},
        on_progress=reporter.played,
    )
    scores = {score.epsilon: score.mean for score in pool_scores(evaluation.results[0])}
    scores = scores or {0.0: evaluation.clean_return} | {each.epsilon: each.mean for each in evaluation.worst}
    worst = {f"worst_return/epsilon_{epsilon:g}": score for epsilon, score in scores.items() if epsilon}
    reporter.numbers = {"clean_return": scores[0.0], **worst}
    folder.note_evaluation(
        node,
        file_name(evaluation),
        clean_return=scores[0.0],
        failed_checks=[check.name for check in evaluation.failures],
        seconds=time.perf_counter() - started,
    )
