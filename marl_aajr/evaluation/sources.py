"""The folders that `evaluate` reads and writes: runs, saved victims, checkpoints of RLlib, and results."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from marl_aajr.adversaries import agent_game, observation_game
from marl_aajr.adversaries.agent_game import PAYS, AgentThreat
from marl_aajr.adversaries.learned import loaded
from marl_aajr.adversaries.store import RECORD, how_to_resume, is_begun
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.outcomes import AdversaryTraining
from marl_aajr.evaluation.protocol import Protocol
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.evaluation.result import Check, Evaluation
from marl_aajr.rollout.attack.training_attack import TrainingAttack
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.teams import sideless
from marl_aajr.training.files import write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import CERTIFICATES, beside
from marl_aajr.training.team_methods import team_methods
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.portable import DESCRIPTION

_CHECKPOINT = "rllib_checkpoint.json"
"""RLlib's own mark of a checkpoint of an algorithm."""


def find_victim(path: Path, env: EnvironmentSpec | None = None) -> Victim:
    """The victim of a finished run, of a folder that `Victim.save` wrote, or of an RLlib checkpoint.

    A checkpoint must be told its environment, a saved victim may be, a run knows its own.

    Raises:
        ValueError: something else there, an adversary, a run that is not finished, an environment too many or
            too few, or one that the policies do not fit.
    """
    if (path / _CHECKPOINT).is_file():
        if env is None:
            raise ValueError(
                f"expected the environment of the RLlib checkpoint {path}, got none; name it: --env NAME "
                "(in Python env=), with its arguments: --set env.kwargs.N=5"
            )
        from marl_aajr.rllib.victims import victim_from_checkpoint

        return victim_from_checkpoint(path, env=env)
    if (path / DESCRIPTION).is_file():
        return Victim.load(path)
    run = RunDirectory(path)
    if not run.is_run:
        raise ValueError(
            f"expected the folder of a run, of a saved victim or of an RLlib checkpoint, got {path}, which "
            f"has no config.yaml and status.json, no {DESCRIPTION} and no {_CHECKPOINT}; name another, "
            "or train one there first"
        )
    if env is not None:
        raise ValueError(f"expected no environment for the run {path}, which has its own, got {env.name}")
    check_finished(run)
    own = run.config().env
    if own.name in (observation_game.GAME, agent_game.GAME):  # whose arguments name the victims
        saved = Path(own.kwargs["victim"])
        victims = saved.parent if RunDirectory(saved.parent).is_run else saved
        raise ValueError(
            f"expected a team, got {run.path}, an adversary of the team in {victims}; evaluate that team by "
            f"it: marl-aajr evaluate {shlex.quote(str(victims))} --adversary {shlex.quote(str(run.path))}"
        )
    return Victim.load(run.victim)


def adversary_policies(path: Path) -> Victim:
    """The policies of a finished run, of an adversary, too, or of a folder that `Victim.save` wrote.

    Raises:
        ValueError: nothing of the kind there, or a run that is not finished.
    """
    if RunDirectory(path).is_run and not (path / DESCRIPTION).is_file():
        check_finished(RunDirectory(path))
        return Victim.load(RunDirectory(path).victim)
    return find_victim(path)


def training_attack_of(path: Path, agents: Collection[str]) -> TrainingAttack | None:
    """The attack that one of these agents was trained under, at its last ε; None: there was none."""
    config = RunDirectory(path).config()
    if config.attack is None:
        return None
    from marl_aajr.training.policy_mapping import policy_mapping_of  # late: it needs RLlib

    attack = team_methods(config, policy_mapping_of(config)).attack
    if attack is None or not set(agents) & set(attack.agents or agents):
        return None
    return TrainingAttack.of(attack, env_steps=config.env_steps)


def evaluations_of(path: Path) -> Path:
    """The folder of the evaluations of a run, within it, or of a victim or checkpoint, beside it."""
    run = RunDirectory(path)
    return run.evaluations if run.is_run else beside(path)


def certificates_of(path: Path) -> Path:
    """The same of certificates."""
    run = RunDirectory(path)
    return run.certificates if run.is_run else beside(path, CERTIFICATES)


def file_name(evaluation: Evaluation) -> str:
    """Of a file in `RUN/evaluations`: says the protocol, and differs where anything asked for does."""
    names = {"env", "num_envs", "team", "agents", "budget", "units", "selection_episodes", "weakest_link"}
    asked = evaluation.model_dump(mode="json", include=names)
    asked["actions"] = [result.actions for result in evaluation.results]
    asked["attacks"] = [row.attack.model_dump(mode="json") for row in evaluation.attacks]
    if evaluation.smoothing is not None:
        asked["smoothing"] = str(evaluation.smoothing)
    if threats := evaluation.results[0].threats:
        asked["threats"] = [row.asked for row in threats]
    by = {"kind", "agents", "source"}
    asked["replaced"] = [row.model_dump(mode="json", include=by) for row in evaluation.adversarial_agents]
    if opponents := evaluation.results[0].opponents:
        asked["opponents"] = [row.model_dump(mode="json", include={"opponent", "kind"}) for row in opponents]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    suite = f"{evaluation.suite}-" if evaluation.suite else ""
    return f"{suite}seed{evaluation.seed}-episodes{evaluation.episodes}-{digest}.json"


def write(evaluation: Evaluation, out: Path | str | None, victim: Path | None) -> None:
    """Write a result to a file; None: among the evaluations of the victim's folder, if it has one."""
    if out is not None:
        path = Path(out)
    elif victim is not None:
        path = evaluations_of(victim) / file_name(evaluation)
    else:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, evaluation.model_dump(mode="json"))


def with_adversaries(
    protocol: Protocol,
    runs: Mapping[str, Path | str],
    *,
    against: Victim,
    spec: EnvironmentSpec,
    at: Path | str,
) -> tuple[Protocol, list[Check]]:
    """A protocol with trained adversaries added to its attacks and replacements by name, and warnings.

    An observation adversary attacks with the ε of its training, and must have been trained against the team
    to evaluate, which is in `at`; of those that act and were not, a warning says so.

    Raises:
        ValueError: not a finished run of an adversary, or one of another team.
    """
    notes: list[Check] = []
    for name, path in runs.items():
        run = RunDirectory(path)
        protocol = _with_adversary(protocol, run, name=name, against=against, at=at)
        notes += _adversary_notes(run, name=name, against=against, spec=spec)
    return protocol, notes


def _with_adversary(
    protocol: Protocol, run: RunDirectory, *, name: str, against: Victim, at: Path | str
) -> Protocol:
    check_finished(run)
    if run.config().env.name != observation_game.GAME:
        replacement = _replacement(run, source=name, against=against)
        if (disturbance := AgentThreat(**run.config().env.kwargs).disturbance) is not None:
            own = replace(disturbance, agents=replacement.agents, by=str(run.path))
            return protocol.changed(disturb=[*protocol.disturb, str(own)])
        return protocol.changed(replace=[*protocol.replace, replacement])
    threat = run.config().env.kwargs
    if threat["digest"] != fingerprint(against):
        raise ValueError(
            f"expected an adversary of the team in {at}, got {run.path}, which was trained against the one "
            f"in {threat['victim']}; train another: marl-aajr adversary train {shlex.quote(str(at))} --kind "
            f"{threat['kind']} --epsilon {threat['epsilon']:g}"
        )
    learned = loaded(run.path, name=name)
    entry = AttackEntry(attack=learned, epsilon=learned.perturbations.epsilon)
    return protocol.changed(attacks=[*protocol.attacks, entry])


def _adversary_notes(
    run: RunDirectory, *, name: str, against: Victim, spec: EnvironmentSpec
) -> Iterator[Check]:
    """A warning about an adversary that was trained in another environment, or against other victims."""
    threat = run.config().env.kwargs
    there, here = (sideless(kwargs) for kwargs in (threat.get("env_kwargs", {}), spec.kwargs))
    elsewhere = []
    if threat["env"] != spec.name or there != here:
        elsewhere.append(f"in {threat['env']} with {there}, not in {spec.name} with {here}")
    if threat["digest"] != fingerprint(against):
        elsewhere.append("against other victims than these")
    if elsewhere:
        text = f"It was trained {' and '.join(elsewhere)}: one that is trained here may do more harm."
        yield Check(f"adversary {name}", "warn", text)


def _replacement(run: RunDirectory, *, source: str, against: Victim) -> Replacement:
    config = run.config()
    if config.env.name != agent_game.GAME:
        raise ValueError(
            f"expected the run of an adversary that acts, got {run.path}, which was trained in "
            f"{config.env.name}; train one with: marl-aajr adversary train"
        )
    threat = AgentThreat(**config.env.kwargs)
    victim = Victim.load(run.victim)
    record = run.path / RECORD  # not of a run that somebody trained in the game by hand
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    effort = {name: known[name] for name in ("env_steps", "search", "seeds", "curve") if name in known}
    return Replacement(
        kind=threat.kind,
        agents=victim.agents,
        victim=victim,
        source=source,
        training=AdversaryTraining(
            pays=threat.pays or PAYS[threat.kind],
            foreign=threat.digest != fingerprint(against),
            **{"env_steps": config.env_steps, **effort},
        ),
    )


def check_finished(run: RunDirectory) -> None:
    """Raise `ValueError` for anything but a finished run."""
    if is_begun(run.path):
        raise ValueError(
            f"expected a finished run, got {run.path}, an adversary whose training has not ended; if "
            f"nobody is at it, finish it with: {how_to_resume(run.path)}"
        )
    status = run.status()
    if status.state == "finished":
        return
    cure = f"finish it with: {how_to_resume(run.path)}"
    if status.state == "running" and _is_training(run):
        cure = "it is being trained: wait until it has finished"
    raise ValueError(
        f"expected a finished run, got {run.path}, which is {status.state} at iteration "
        f"{status.iteration}; {cure}"
    )


def _is_training(run: RunDirectory) -> bool:
    """Whether a process is writing there; one that was killed leaves `running` behind."""
    try:
        run.lock()
    except (ValueError, OSError):  # or somebody else's folder, which may not be locked
        return True
    run.unlock()
    return False
