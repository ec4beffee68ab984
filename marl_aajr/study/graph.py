"""The work of a study as a graph: victims and the pool, then adversaries, then the evaluation of each victim.

A node is a value that says what is to be done; `worker.do_node` does it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.protocol import Suite
from marl_aajr.study.runs import StudyRun
from marl_aajr.study.study_config import EvaluationEntry, StudyConfig
from marl_aajr.study.study_pool import Opponent, Pool, trained_for

Kind = Literal["train", "adversary", "evaluate"]


@dataclass(frozen=True)
class Node:
    """One piece of work.

    Attributes:
        name: the run's, followed by what is done with it where that is not its training.
        needs: names of the nodes that must have succeeded.
        adversary: the adversary that is trained against the run; None: it trains none.
        evaluation: the settings of the evaluation; None: it evaluates nothing.
        surrogate: another run that perturbations are computed on, for its evaluation.
        faced: the trained adversaries that its evaluation has it face.
        opponents: the pool that its evaluation has it meet.
        partners: the runs of other seeds whose members play in its team, for its evaluation.
    """

    name: str
    run: StudyRun
    needs: tuple[str, ...] = ()
    adversary: AdversaryRequest | None = None
    evaluation: EvaluationEntry | None = None
    suite: Suite | None = None
    surrogate: StudyRun | None = None
    faced: tuple[AdversaryRequest, ...] = ()
    opponents: tuple[Opponent, ...] = ()
    partners: tuple[StudyRun, ...] = ()

    @property
    def kind(self) -> Kind:
        if self.adversary is not None:
            return "adversary"
        return "train" if self.evaluation is None else "evaluate"

    @property
    def env_steps(self) -> int:
        """Length of the training; 0 for an evaluation."""
        if self.adversary is not None:
            return self.adversary.steps
        return self.run.config.env_steps if self.evaluation is None else 0

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The resources that it takes, as bundles of a placement group."""
        return self.run.config.resources.bundles if self.kind == "train" else [{"CPU": 1.0}]


def graph(
    study: StudyConfig,
    runs: Sequence[StudyRun],
    suite: Suite | None,
    *,
    pool: Pool,
    mixed: Collection[str],
) -> dict[str, Node]:
    """Every piece of work of a study by name, after whatever it needs; without a suite, no evaluation.

    In the `mixed` environments, by title, seeds of a method play with each other.
    """
    trained = [Node(run.name, run) for run in (*runs, *trained_for(pool))]
    against = [(run, entry) for run in runs for entry in study.adversaries]
    against += [
        (member.run, member.adversary)
        for members in pool.values()
        for member in members
        if member.run is not None and member.adversary is not None
    ]
    adversaries = [
        Node(f"{run.name}/{entry.name}", run, (run.name,), adversary=entry) for run, entry in against
    ]
    surrogates = _surrogates(study, runs) if study.evaluation.transfer else {}
    alike = grouped((_but_for_seed(run), run) for run in runs)
    evaluations = []
    for run in runs if suite is not None else ():
        surrogate = surrogates.get(run.name)
        needs = [run.name, *(node.name for node in adversaries if node.run is run)]
        needs += [] if surrogate is None else [surrogate.name]
        opponents = pool.get(run.variant.environment.title, ())
        needs += [name for member in opponents for name in member.needs]
        seeds = [other for other in alike[_but_for_seed(run)] if other is not run]
        partners = tuple(seeds) if run.variant.environment.title in mixed else ()
        needs += [other.name for other in partners]
        evaluations.append(
            Node(
                f"{run.name}/evaluation",
                run,
                tuple(dict.fromkeys(needs)),
                evaluation=study.evaluation,
                suite=suite,
                surrogate=surrogate,
                faced=study.adversaries,
                opponents=opponents,
                partners=partners,
            )
        )
    return {node.name: node for node in (*trained, *adversaries, *evaluations)}


def _but_for_seed(run: StudyRun) -> tuple[str, str]:
    return run.variant.name, repr(run.point)


def chosen(nodes: Mapping[str, Node], pattern: str | None) -> dict[str, Node]:
    """The work on the runs whose names match, and all that it needs; `ValueError` where none matches."""
    if pattern is None:
        return dict(nodes)
    wanted = [node.name for node in nodes.values() if fnmatchcase(node.run.name, pattern)]
    if not wanted:
        known = ", ".join(dict.fromkeys(node.run.name for node in nodes.values()))
        raise ValueError(f"expected a pattern of run names for --only, got {pattern!r}; the runs are {known}")
    found: dict[str, None] = {}
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = None
            wanted += nodes[name].needs
    return {name: node for name, node in nodes.items() if name in found}


def stranded(nodes: Mapping[str, Node], failed: Collection[str]) -> set[str]:
    """The names of the nodes that can never be done once these have failed, without these."""
    lost = set(failed)
    for node in nodes.values():  # what is needed comes first
        if lost & set(node.needs):
            lost.add(node.name)
    return lost - set(failed)


def _surrogates(study: StudyConfig, runs: Sequence[StudyRun]) -> dict[str, StudyRun]:
    """For every run the first method's run of the next seed, in the same environment and grid point."""

    def key(run: StudyRun, seed: int) -> tuple[str, str, int]:
        return run.variant.environment.title, repr(run.point), seed

    first = study.methods[0]
    plain = {key(run, run.config.seed): run for run in reversed(runs) if run.variant.method == first}
    following = dict(zip(study.seeds, [*study.seeds[1:], study.seeds[0]], strict=True))
    found = {}
    for run in runs:
        other = plain.get(key(run, following[run.config.seed]))
        if other is not None and other is not run:
            found[run.name] = other
    return found
