"""Evaluate what has a folder: a finished run, a saved victim, an RLlib checkpoint; and keep the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marl_aajr.adversaries.observation_game import GAME
from marl_aajr.evaluation.evaluate import evaluate
from marl_aajr.evaluation.evaluator import Progress
from marl_aajr.evaluation.protocol import AttackEntry, Protocol
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.evaluation.sources import find_victim, finished, observation_adversary, replacement_of
from marl_aajr.training.files import write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim


def evaluate_run(
    run: Path | str,
    protocol: Protocol | None = None,
    *,
    surrogates: Sequence[Path | str] | Mapping[str, Path | str] = (),
    adversaries: Sequence[Path | str] | Mapping[str, Path | str] = (),
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate the victim of a run, and keep the result; see `evaluate`.

    The result is written at the end and in one step: to `RUN/evaluations`, or for victims and checkpoints
    to a folder beside theirs, `…-evaluations`. The same evaluation again replaces its file.

    Args:
        run: the run directory, the folder of a saved victim, or an RLlib checkpoint.
        protocol: what is played; None: what `settings` say.
        surrogates: others of these, on whose victims `transfer` computes its perturbations; with a mapping
            by a name for each, else by their folders' names.
        adversaries: runs of trained adversaries, named as `surrogates` are: traitors and opponents are
            added to `replace`, observation adversaries to `attacks`, at the size they were trained for.
        env: the environment of a checkpoint, which does not know it; see `find_victim`.
        env_kwargs: arguments of the environment.
        out: the file to write instead.
        on_progress: told after every episode.
        settings: fields of `Protocol` by name.

    Raises:
        ValueError: nothing of the kind there, or an unfinished run; and all that `evaluate` refuses.
    """
    protocol = (protocol or Protocol()).changed(**settings)
    source = find_victim(run, env=env, env_kwargs=env_kwargs)
    others = {name: _surrogate(path, env, env_kwargs) for name, path in _named(surrogates).items()}
    attacks, replace = list(protocol.attacks), list(protocol.replace)
    for name, path in _named(adversaries).items():
        adversary = finished(path)
        if adversary.config().env.name == GAME:
            learned = observation_adversary(adversary, source=name, against=source.victim, at=run)
            attacks.append(AttackEntry(attack=learned, epsilon=learned.perturbations.epsilon))
        else:
            replace.append(replacement_of(adversary, source=name, against=source.victim))
    evaluation = evaluate(
        source.victim,
        source.environment,
        protocol.changed(attacks=attacks, replace=replace),
        surrogates=others,
        home=Path(run) if RunDirectory(run).is_run else None,
        on_progress=on_progress,
    )
    file = Path(out) if out is not None else source.evaluations / file_name(evaluation)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, evaluation.model_dump(mode="json"))
    return evaluation


def file_name(evaluation: Evaluation) -> str:
    """Of a file in `RUN/evaluations`: says the protocol, and differs where anything asked for does."""
    asked = evaluation.model_dump(
        mode="json", include={"env", "num_envs", "team", "agents", "budget", "units", "selection_episodes"}
    )
    asked["weakest_link"] = evaluation.weakest_link
    asked["actions"] = [result.actions for result in evaluation.results]
    asked["attacks"] = [row.attack.model_dump(mode="json") for row in evaluation.attacks]
    asked["replaced"] = [
        row.model_dump(mode="json", include={"kind", "agents", "source"})
        for row in evaluation.adversarial_agents
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    suite = f"{evaluation.suite}-" if evaluation.suite else ""
    return f"{suite}seed{evaluation.seed}-episodes{evaluation.episodes}-{digest}.json"


def _surrogate(path: Path | str, env: str | None, env_kwargs: Mapping[str, Any] | None) -> Victim:
    """The victim of another source: of the same environment, which a run knows by itself."""
    return find_victim(path, env=None if RunDirectory(path).is_run else env, env_kwargs=env_kwargs).victim


def _named(runs: Sequence[Path | str] | Mapping[str, Path | str]) -> dict[str, Path | str]:
    """Runs by the names that were given, or by their folders', or by their paths where two have the same."""
    if isinstance(runs, Mapping):
        return dict(runs)
    names = [Path(run).resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}
