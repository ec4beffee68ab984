"""Evaluate a finished run, and leave the result in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from marl_aajr.evaluation.adversaries import replacement_of
from marl_aajr.evaluation.evaluate import evaluate
from marl_aajr.evaluation.player import Progress
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.results import Evaluation
from marl_aajr.evaluation.suites import Suite, load_suite
from marl_aajr.training.files import write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim


def evaluate_run(
    run: Path | str,
    *,
    suite: str | Path | Suite | None = None,
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    surrogates: Sequence[Path | str] | Mapping[str, Path | str] = (),
    replace: Sequence[str | Replacement] = (),
    adversaries: Sequence[Path | str] | Mapping[str, Path | str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    **protocol: Any,
) -> Evaluation:
    """Evaluate the victim of a run by a suite, or under every attack at every epsilon; see :func:`evaluate`.

    The result is written to ``RUN/evaluations``, at the end and in one step. The same evaluation again
    replaces its file.

    Args:
        run: the run directory.
        suite: as for :func:`evaluate`; ``attacks`` are added to it.
        attacks: names; none, and no suite: the clean return only.
        epsilons: radii, for all attacks; none: the suite's.
        surrogates: other runs, on whose victims ``transfer`` computes its perturbations; with a mapping by
            a name for each, else by their folders' names.
        replace: as for :func:`evaluate`.
        adversaries: runs of traitors and opponents, named as ``surrogates`` are; they are added to it.
        on_progress: told after every episode.
        protocol: ``episodes``, ``selection_episodes``, ``actions``, ``units``, ``seed``, ``team``,
            ``agents``, ``norm``, ``budget``, ``weakest_link`` and ``workers`` of :func:`evaluate`.

    Raises:
        ValueError: not a run, or an unfinished one; and all that :func:`evaluate` refuses.
    """
    directory = _finished(run)
    victim = Victim.load(directory.victim)
    others = {name: Victim.load(_finished(path).victim) for name, path in _named(surrogates).items()}
    trained = [
        replacement_of(_finished(path), source=name, against=victim)
        for name, path in _named(adversaries).items()
    ]
    chosen = None if suite is None else load_suite(suite)
    sizes = epsilons or (() if chosen is None else chosen.epsilons)
    evaluation = evaluate(
        victim,
        suite=chosen,
        attacks=_requests(attacks, sizes, alone=chosen is None),
        epsilons=epsilons if chosen is not None and epsilons else None,
        surrogates=others,
        replace=[*replace, *trained],
        on_progress=on_progress,
        **protocol,
    )
    directory.evaluations.mkdir(exist_ok=True)
    write_json(directory.evaluations / f"{_name(evaluation)}.json", evaluation.to_json())
    return evaluation


def _requests(attacks: Sequence[str], epsilons: Sequence[float], *, alone: bool) -> list[tuple[str, float]]:
    if alone and bool(attacks) != bool(epsilons):
        raise ValueError(
            f"expected attacks and epsilons, or neither, got attacks {list(attacks)} and epsilons "
            f"{list(epsilons)}; name both"
        )
    return list(product(attacks, epsilons))


def _named(runs: Sequence[Path | str] | Mapping[str, Path | str]) -> dict[str, Path | str]:
    """Runs by the names that were given, or by their folders', or by their paths where two have the same."""
    if isinstance(runs, Mapping):
        return dict(runs)
    names = [Path(run).resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}


def _finished(run: Path | str) -> RunDirectory:
    directory = RunDirectory(run)
    status = directory.status()
    if status.state == "finished":
        return directory
    cure = (
        "it is being trained: wait until it has finished"
        if status.state == "running" and _is_training(directory)
        else f"finish it with: marl-aajr train --resume --out {directory.path}"
    )
    raise ValueError(
        f"expected a finished run, got {directory.path}, which is {status.state} at iteration "
        f"{status.iteration}; {cure}"
    )


def _is_training(directory: RunDirectory) -> bool:
    """Whether a process is writing there; one that was killed leaves ``running`` behind."""
    try:
        directory.lock()
    except (ValueError, OSError):  # or somebody else's folder, which may not be locked
        return True
    directory.unlock()
    return False


def _name(evaluation: Evaluation) -> str:
    """A name that says the protocol, and differs where anything that was asked for does."""
    asked = repr(
        (
            evaluation.team,
            evaluation.agents,
            *([evaluation.budget] if evaluation.budget else []),
            evaluation.units,
            evaluation.selection_episodes,
            [rows.actions for rows in evaluation.rows],
            [row.attack for row in evaluation.attacks],
            [row.replacement for row in evaluation.adversarial_agents],
        )
    )
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    suite = f"{evaluation.suite}-" if evaluation.suite else ""
    return f"{suite}seed{evaluation.seed}-episodes{evaluation.episodes}-{digest}"
