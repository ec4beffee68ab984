"""Attacks that must learn first, fitted on episodes of their own, in the environment that is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import Attack
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.evaluation.player import Player
from marl_aajr.rollout.environments import resolve


def fitted(player: Player, attacks: Sequence[Attack]) -> tuple[Attack, ...]:
    """The attacks, those that are not ready fitted: once for all sizes, unless one is for one size only.

    Where the environment is not the victim's own, its run neither has what fits nor keeps it.
    """
    learned: dict[Attack, Attack] = {}
    found: list[Attack] = []
    for attack in attacks:
        if attack.ready or not isinstance(attack, FittedAttack):
            found.append(attack)
            continue
        key = attack if attack.per_size else attack.at(1.0)
        if key not in learned:
            player.tell(f"fitting {attack.name}", 0)
            learned[key] = _fitted(player, attack)
        found.append(learned[key] if attack.per_size else learned[key].at(attack.perturbations.epsilon))
    return tuple(found)


def _fitted(player: Player, attack: FittedAttack) -> Attack:
    victim, spec, home = player.victim, player.spec, player.home
    own = resolve(victim.env_name, victim.env_kwargs) if victim.env_name else None
    if own is None or (own.name, dict(own.kwargs)) != (spec.name, dict(spec.kwargs)):
        victim, home = replace(victim, env_name=spec.name, env_kwargs=dict(spec.kwargs)), None
    seed = derived_seed(player.seed, Purpose.FIT)
    return attack.fit(victim, player.env, agents=player.agents, seed=seed, units=player.units, home=home)
