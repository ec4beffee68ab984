"""Trained adversaries, from the runs that they were trained by."""

from __future__ import annotations

import shlex
from pathlib import Path

from marl_aajr.adversaries.agent_game import GAME, PAYS, AgentThreat
from marl_aajr.adversaries.learned import LearnedAttack, loaded
from marl_aajr.evaluation.outcomes import AdversaryTraining
from marl_aajr.evaluation.replacements import Replacement
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint


def liar_of(run: RunDirectory, *, source: str, against: Victim, at: Path | str) -> LearnedAttack:
    """An observation adversary, as an attack of the size that it was trained for.

    Args:
        run: that it was trained by, finished.
        source: what the run is called.
        against: who will be evaluated: those whom it was trained against.
        at: where they are.

    Raises:
        ValueError: the run of something else, or of an adversary of others.
    """
    liar = loaded(run.path, name=source)
    threat = run.config().env.kwargs
    if threat["digest"] != fingerprint(against):
        raise ValueError(
            f"expected an adversary of the team in {at}, got {run.path}, which was trained against the one "
            f"in {threat['victim']}; train another: marl-aajr adversary train {shlex.quote(str(at))} --kind "
            f"{threat['kind']} --epsilon {threat['epsilon']:g}"
        )
    return liar


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
