"""Evaluate a finished run, and leave the result in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from marl_aajr.evaluation.evaluate import Progress, evaluate
from marl_aajr.evaluation.results import Evaluation
from marl_aajr.training.files import write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim


def evaluate_run(
    run: Path | str,
    *,
    attacks: Sequence[str],
    epsilons: Sequence[float],
    episodes: int = 100,
    seed: int = 0,
    team: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Evaluate the victim of a run under every attack at every epsilon; see :func:`evaluate`.

    The result is written to ``RUN/evaluations``, at the end and in one step. The same evaluation again
    replaces its file.

    Args:
        run: the run directory.
        attacks: names; none: the clean return only.
        epsilons: radii, for all of them.
        episodes: for each row.
        seed: of the episodes and of the attacks.
        team: who is attacked.
        on_progress: told after every episode.

    Raises:
        ValueError: not a run, or an unfinished one; and all that :func:`evaluate` refuses.
    """
    directory = RunDirectory(run)
    _check_finished(directory)
    requests = _requests(attacks, epsilons)
    evaluation = evaluate(
        Victim.load(directory.victim),
        attacks=requests,
        episodes=episodes,
        seed=seed,
        team=team,
        on_progress=on_progress,
    )
    directory.evaluations.mkdir(exist_ok=True)
    write_json(directory.evaluations / f"{_name(evaluation)}.json", evaluation.to_json())
    return evaluation


def _requests(attacks: Sequence[str], epsilons: Sequence[float]) -> list[tuple[str, float]]:
    if bool(attacks) != bool(epsilons):
        raise ValueError(
            f"expected attacks and epsilons, or neither, got attacks {list(attacks)} and epsilons "
            f"{list(epsilons)}; name both"
        )
    return list(product(attacks, epsilons))


def _check_finished(directory: RunDirectory) -> None:
    status = directory.status()
    if status.state != "finished":
        raise ValueError(
            f"expected a finished run, got {directory.path}, which is {status.state} at iteration "
            f"{status.iteration}; finish it with: marl-aajr train --resume --out {directory.path}"
        )


def _name(evaluation: Evaluation) -> str:
    """A name that says the protocol, and differs where anything that was asked for does."""
    asked = repr((evaluation.team, [row.attack for row in evaluation.attacks]))
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    return f"seed{evaluation.seed}-episodes{evaluation.episodes}-{digest}"
