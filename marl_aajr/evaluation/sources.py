"""Victims and adversaries from their folders: finished runs, saved victims, checkpoints of RLlib."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl_aajr.adversaries import agent_game, observation_game
from marl_aajr.adversaries.agent_game import GAME, PAYS, AgentThreat
from marl_aajr.adversaries.learned import LearnedAttack, loaded
from marl_aajr.adversaries.store import how_to_resume, is_begun
from marl_aajr.evaluation.outcomes import AdversaryTraining
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import evaluations_beside
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.store import DESCRIPTION


def observation_adversary(
    run: RunDirectory, *, source: str, against: Victim, at: Path | str
) -> LearnedAttack:
    """An observation adversary, as an attack of the size that it was trained for.

    Args:
        run: that it was trained by, finished.
        source: what the run is called.
        against: who will be evaluated: those whom it was trained against.
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
        against: who will be evaluated. It need not be whom it was trained against, but that is said then.

    Raises:
        ValueError: the run of something else.
    """
    config = run.config()
    if config.env.name != GAME:
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
        victim: who plays.
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
        f"expected a team, got {run.path}, an adversary of the team in {victims}; judge that team by it: "
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
