"""Evaluations of folders: finished runs, saved victims and checkpoints of RLlib; their results are kept.

`evaluate_run` finds the victim (`find_victim`) and the adversaries in their folders, calls `evaluate`, and
writes the result.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl_aajr.adversaries import agent_game, observation_game
from marl_aajr.adversaries.agent_game import PAYS, AgentThreat
from marl_aajr.adversaries.learned import LearnedAttack, loaded
from marl_aajr.adversaries.store import how_to_resume, is_begun
from marl_aajr.evaluation.evaluate import evaluate
from marl_aajr.evaluation.evaluator import Progress
from marl_aajr.evaluation.outcomes import AdversaryTraining
from marl_aajr.evaluation.protocol import AttackEntry, Protocol
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.training.files import write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import evaluations_beside
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.portable import DESCRIPTION


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
        if adversary.config().env.name == observation_game.GAME:
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


def observation_adversary(
    run: RunDirectory, *, source: str, against: Victim, at: Path | str
) -> LearnedAttack:
    """An observation adversary, as an attack of the size that it was trained for.

    Args:
        run: that it was trained by, finished.
        source: what the run is called.
        against: the team to evaluate, which it must have been trained against.
        at: where they are.

    Raises:
        ValueError: the run of something else, or of an adversary of others.
    """
    learned = loaded(run.path, name=source)
    threat = run.config().env.kwargs
    if threat["digest"] != fingerprint(against):
        raise ValueError(
            f"expected an adversary of the team in {at}, got {run.path}, which was trained against the one "
            f"in {threat['victim']}; train another: marl-aajr adversary train {shlex.quote(str(at))} --kind "
            f"{threat['kind']} --epsilon {threat['epsilon']:g}"
        )
    return learned


def replacement_of(run: RunDirectory, *, source: str, against: Victim) -> Replacement:
    """A traitor or an opponent, as something to evaluate by.

    Args:
        run: that it was trained by, finished.
        source: what the run is called.
        against: the team to evaluate. Where it was trained against another, the result says so.

    Raises:
        ValueError: the run of something else.
    """
    config = run.config()
    if config.env.name != agent_game.GAME:
        raise ValueError(
            f"expected the run of a traitor or an opponent, got {run.path}, which was trained in "
            f"{config.env.name}; train one with: marl-aajr adversary train"
        )
    threat = AgentThreat(**config.env.kwargs)
    victim = Victim.load(run.victim)
    return Replacement(
        kind=threat.kind,
        agents=victim.agents,
        victim=victim,
        source=source,
        training=AdversaryTraining(
            pays=threat.pays or PAYS[threat.kind],
            env_steps=config.env_steps,
            foreign=threat.digest != fingerprint(against),
        ),
    )


_CHECKPOINT = "rllib_checkpoint.json"
"""RLlib's own mark of a checkpoint of an algorithm."""

_GAMES = (observation_game.GAME, agent_game.GAME)
"""Where adversaries learn; in each the victims are an argument."""


@dataclass(frozen=True)
class Source:
    """A victim, and what belongs to it.

    Attributes:
        victim: plays all agents.
        environment: where; None: the one that the victim knows.
        evaluations: the folder that its results go to.
    """

    victim: Victim
    environment: EnvironmentSpec | None
    evaluations: Path


def find_victim(
    path: Path | str, *, env: str | None = None, env_kwargs: Mapping[str, Any] | None = None
) -> Source:
    """The victim of a finished run, of a folder that `Victim.save` wrote, or of an RLlib checkpoint.

    Args:
        path: a folder.
        env: the environment; a checkpoint must be told, a saved victim may be, a run knows its own.
        env_kwargs: its arguments.

    Raises:
        ValueError: something else there, an adversary, a run that is not finished, an environment too many or
            too few, or one that the policies do not fit.
    """
    path = Path(path)
    if (path / _CHECKPOINT).is_file():
        if env is None:
            raise ValueError(
                f"expected the environment of the RLlib checkpoint {path}, got none; name it: --env NAME "
                "(in Python env=), with its arguments: --set env.kwargs.N=5"
            )
        from marl_aajr.rllib.victims import victim_from_checkpoint

        return Source(
            victim_from_checkpoint(path, env=env, env_kwargs=env_kwargs), None, evaluations_beside(path)
        )
    if (path / DESCRIPTION).is_file():
        spec = None if env is None else resolve(env, env_kwargs)
        return Source(Victim.load(path), spec, evaluations_beside(path))
    if not RunDirectory(path).is_run:
        raise ValueError(
            f"expected the folder of a run, of a saved victim or of an RLlib checkpoint, got {path}, which "
            f"has no config.yaml and status.json, no {DESCRIPTION} and no {_CHECKPOINT}; name another, "
            "or train one there first"
        )
    if env is not None:
        raise ValueError(f"expected no environment for the run {path}, which has its own, got {env}")
    directory = finished(path)
    _refuse_adversary(directory)
    return Source(Victim.load(directory.victim), None, directory.evaluations)


def _refuse_adversary(run: RunDirectory) -> None:
    env = run.config().env
    if env.name not in _GAMES:
        return
    saved = Path(env.kwargs["victim"])
    victims = saved.parent if RunDirectory(saved.parent).is_run else saved
    raise ValueError(
        f"expected a team, got {run.path}, an adversary of the team in {victims}; evaluate that team by it: "
        f"marl-aajr evaluate {shlex.quote(str(victims))} --adversary {shlex.quote(str(run.path))}"
    )


def finished(run: Path | str) -> RunDirectory:
    """A run that is finished.

    Raises:
        ValueError: not a run, or an unfinished one.
    """
    directory = RunDirectory(run)
    if is_begun(directory.path):
        raise ValueError(
            f"expected a finished run, got {directory.path}, an adversary whose training has not ended; if "
            f"nobody is at it, finish it with: {how_to_resume(directory.path)}"
        )
    status = directory.status()
    if status.state == "finished":
        return directory
    cure = (
        "it is being trained: wait until it has finished"
        if status.state == "running" and _is_training(directory)
        else f"finish it with: {how_to_resume(directory.path)}"
    )
    raise ValueError(
        f"expected a finished run, got {directory.path}, which is {status.state} at iteration "
        f"{status.iteration}; {cure}"
    )


def _is_training(directory: RunDirectory) -> bool:
    """Whether a process is writing there; one that was killed leaves `running` behind."""
    try:
        directory.lock()
    except (ValueError, OSError):  # or somebody else's folder, which may not be locked
        return True
    directory.unlock()
    return False
