"""Choose and shoot the films of a page: in each scene one team, without and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from marl_aajr.attacks import ATTACKS, Attack, make_attack
from marl_aajr.evaluation.suites import Units
from marl_aajr.report.comparison import Comparison, Row
from marl_aajr.report.films import film
from marl_aajr.report.scenes import Scene
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim

_FALLBACK = "pgd"


def films_of(comparisons: Sequence[Comparison]) -> dict[Scene, bytes | str]:
    """Of each scene, an animated GIF of the plain method's first run (or the first method's).

    The attack is the worst of the largest size where it can be made from its description alone, and PGD
    otherwise. Where an environment cannot draw itself, or a run has no victim to play it, the reason stands
    instead: hours of evaluations are not lost for want of a picture.
    """
    return {comparison.scene: _film_or_reason(comparison) for comparison in comparisons}


def _film_or_reason(comparison: Comparison) -> bytes | str:
    try:
        return _film(comparison)
    except ValueError as error:
        return str(error)


def _film(comparison: Comparison) -> bytes:
    row = comparison.plain or comparison.rows[0]
    run = row.runs[0].run
    victim = Victim.load(RunDirectory(run.path).victim)
    protocol = comparison.protocol
    return film(
        victim,
        resolve(victim.env_name, victim.env_kwargs),
        attack=_attack(row, comparison.epsilons[-1]),
        team=protocol.team or None,
        units=cast(Units, protocol.units or "raw"),
        sampled=protocol.actions == "sampled",
        seed=protocol.seed,
        title=row.method.label,
    )


def _attack(row: Row, epsilon: float) -> Attack:
    """The worst attack of a size where its description says all about it; else `_FALLBACK`."""
    worst = row.worst[epsilon]
    if worst.name in ATTACKS and not worst.limits and worst.spec.access != "surrogate":
        made = worst.spec.make()
        if made.ready:
            return made
    return make_attack(_FALLBACK, epsilon=epsilon)
