"""The attacks that are played: those of a protocol, as far as the victim admits them, fitted to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import Attack, Fault, Transfer
from marl_aajr.core.channels import EACH, NO_CHANNELS, Channels, check_channels, each_channel
from marl_aajr.core.environment_values import TO_FLOAT
from marl_aajr.core.flat_observations import FlatBox, check_mask_is_named
from marl_aajr.core.policy import differentiable
from marl_aajr.core.seeds import Purpose, derived_seed
from marl_aajr.core.threat import SetNorm
from marl_aajr.core.token_network import TokenNetwork, check_radius
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.attack_schedule import has_preferences
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.company import Judged
from marl_aajr.evaluation.evaluator import Evaluator
from marl_aajr.evaluation.fault_limits import check_fault, check_fits, longest_episode
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.evaluation.prepared_attack import held_attack, reachable
from marl_aajr.evaluation.protocol import Protocol, Suite
from marl_aajr.evaluation.result import Skipped
from marl_aajr.rollout.environments import resolve
from marl_aajr.victims import Victim
from marl_aajr.victims.filters import at_network
from marl_aajr.victims.portable import check_portable
from marl_aajr.victims.victim_policy import VictimPolicy


def check_budget(budget: Budget, victim: Victim, agents: Sequence[str]) -> None:
    """Raise `ValueError` unless these agents of the victim can be attacked within the budget."""
    budget.check(agents)
    for agent in agents:
        distribution = victim.distribution(agent)
        if budget.timing == "strategic" and not has_preferences(distribution):
            raise ValueError(
                f"expected discrete actions for timing=strategic, which compares a policy's best action with "
                f"its worst, got {victim.action_spaces[agent]} for {agent!r}; use timing=random"
            )


def settle_units(units: Units | None, victim: Victim, agents: Collection[str]) -> Units:
    """The units of ε; `ValueError`: they were not said, and an observation filter makes a difference."""
    if units is not None:
        return units
    filtered = [agent for agent in agents if victim.filters.get(agent) is not None]
    if filtered:
        raise ValueError(
            "expected units 'raw' (of the environment, the same for all victims) or 'network' (after the "
            f"observation filter) for epsilon, got none, and {filtered[0]!r} has a filter; say which"
        )
    return "raw"


def check_actions(suite: Suite, victim: Victim) -> None:
    """Raise `ValueError` where actions are to be sampled that the victim cannot sample."""
    if victim.greedy_only and "sampled" in suite.actions:
        raise ValueError(
            "expected greedy actions for a victim without a distribution to sample from, got "
            f"{', '.join(suite.actions)}; say --actions greedy (in Python actions=['greedy'])"
        )


def requested(
    protocol: Protocol, suite: Suite, *, surrogates: Mapping[str, Victim]
) -> tuple[tuple[Attack, ...], tuple[Attack, ...]]:
    """The attacks of the suite, settled, at all of its sizes and those beside it; and the latter alone.

    A transfer without a surrogate of its own becomes one for each victim in `surrogates`, by name.

    Raises:
        ValueError: the same attack twice, or attacks of several norms.
    """
    own, beside = (
        _sized(entries, suite, force=protocol.norm) for entries in (suite.attacks, protocol.attacks)
    )
    for attack, times in Counter((*own, *beside)).items():
        if times > 1:
            raise ValueError(
                f"expected each attack and epsilon once, got {attack.name}"
                f"{f' at {attack.perturbations.epsilon:g}' * attack.sized} {times} times; drop the repetition"
            )
    own, beside = _with_surrogates(own, surrogates), _with_surrogates(beside, surrogates)
    return (*own, *beside), tuple(beside)


def common_set(attacks: Sequence[Attack], suite: Suite) -> Suite:
    """A suite with the norm of its attacks, and with the channels that all of them are held to by themselves.

    Raises:
        ValueError: attacks of several norms.
    """
    sized = [attack for attack in attacks if attack.sized]
    norms = {attack.perturbations.norm: attack for attack in sized}
    if len(norms) > 1:
        each = " and ".join(f"{attack.name} in {norm}" for norm, attack in norms.items())
        raise ValueError(
            f"expected attacks of one norm, whose sizes can be compared, got {each}; evaluate once for each "
            "norm"
        )
    held = {attack.perturbations.channels or () for attack in sized if not isinstance(attack, Fault)}
    alike = suite.channels if len(held) != 1 else held.pop()
    return suite.changed(norm=next(iter(norms), suite.norm), channels=alike)


def _sized(entries: Sequence[AttackEntry], suite: Suite, *, force: SetNorm | None) -> list[Attack]:
    """The attacks at their sizes, of a norm where one is asked for, held to the suite's channels."""
    found = []
    for entry in entries:
        sizes = suite.epsilons if entry.epsilon is None else (entry.epsilon,)
        for epsilon in sizes if entry.sized else (1.0,):
            attack = entry.at(epsilon, norm=suite.norm)
            own = attack.perturbations
            if attack.sized and force is not None and force != "words" and force in attack.norms:
                attack = replace(attack, perturbations=replace(own, norm=force))
            if suite.channels and attack.perturbations.channels is None:
                attack = replace(attack, perturbations=replace(attack.perturbations, channels=suite.channels))
            found.append(attack)
    return found


def _with_surrogates(attacks: Sequence[Attack], surrogates: Mapping[str, Victim]) -> list[Attack]:
    """Transfers without a surrogate of their own become one for each that is there."""
    found: list[Attack] = []
    for attack in attacks:
        if isinstance(attack, Transfer) and attack.surrogate is None and surrogates:
            found += [replace(attack, surrogate=v, source=name) for name, v in surrogates.items()]
        else:
            found.append(attack)
    return found


def admitted(
    attacks: Sequence[Attack], judged: Judged, suite: Suite, *, asked: Collection[Attack]
) -> tuple[tuple[Attack, ...], tuple[Skipped, ...]]:
    """The attacks that can be played, and those of a suite that cannot; see `check_attack`.

    Faults within a budget, and in episodes of so many steps at most; None: that is not known.

    Raises:
        ValueError: an attack cannot be played that was asked for by itself, beside a suite or without one; ε
            in other units than the distances between embedded words.
    """
    kept: list[Attack] = []
    skipped: dict[Attack, Skipped] = {}
    env, agents, name = judged.env, judged.members, judged.spec.name
    longest = longest_episode(env, judged.spec)
    _check_units(attacks, judged.victim, agents)
    check_channels(suite.channels, env.channels, agents, env=name)
    for attack in chain.from_iterable(_on_each(attack, judged) for attack in attacks):
        try:
            check_channels(attack.perturbations.channels, env.channels, agents, env=name)
            check_attack(attack, judged.victim, agents, env.channels)
            if isinstance(attack, Fault):
                check_fault(attack, suite.budget)
                check_fits(attack, longest)
        except ValueError as error:
            if attack in asked:
                raise
            skipped[attack.at(1.0)] = Skipped(attack.name, str(error))
        else:
            kept.append(attack)
    return tuple(kept), tuple(skipped.values())


def _on_each(attack: Attack, judged: Judged) -> list[Attack]:
    """An attack on each channel of the agents where it is for `each`, else the attack itself."""
    if attack.perturbations.channels != (EACH,):
        return [attack]
    each = each_channel(judged.env.channels, judged.members) or [EACH]  # which is refused, with the reason
    return [replace(attack, perturbations=replace(attack.perturbations, channels=(name,))) for name in each]


def fitting(
    attack: Attack | None, judged: Judged, *, suite: Suite, units: Units
) -> tuple[Attack | None, tuple[Skipped, ...]]:
    """The attack of training, where it can be compared with those of a suite, or the reason why not."""
    if attack is None:
        return None, ()
    victim, agents = judged.victim, judged.members
    filtered = any(victim.filters.get(agent) is not None for agent in agents)
    norm = attack.perturbations.norm
    try:
        if suite.budget != Budget():
            raise ValueError(f"expected no budget, got {suite.budget}: the attack of training knows none")
        if suite.norm != norm:
            raise ValueError(f"expected the norm of training, {norm}, got {suite.norm}")
        if suite.channels != (held := attack.perturbations.channels or ()):
            here = suite.channels or "all"
            raise ValueError(f"expected the channels of training, {held or 'all'}, got {here}")
        if filtered and units != "raw":
            raise ValueError(f"expected the units of training, raw, got {units}")
        check_attack(attack, victim, agents, judged.env.channels)
    except ValueError as error:
        return None, (Skipped(attack.name, str(error)),)
    return attack, ()


def check_attack(
    attack: Attack, victim: Victim, agents: Sequence[str], channels: Mapping[str, Channels] = NO_CHANNELS
) -> None:
    """Raise `ValueError` where the attack is not defined for the policies of these agents.

    Those agents do not count that observe none of the channels that the attack is held to.
    """
    if attack.access == "learned" and not attack.ready:
        try:
            check_portable(victim)
        except ValueError as error:
            raise ValueError(
                f"expected a victim that can be saved for {attack.name!r}, which trains against a copy: "
                f"{error}"
            ) from None
    reached = reachable(attack, victim, agents, channels)
    if not reached:
        raise ValueError(
            f"expected agents that observe what {attack.name!r} changes ({attack.summary}), got "
            f"{', '.join(agents)}, who do not; leave it out"
        )
    for agent in reached:
        space = victim.observation_spaces[agent]
        flat = space if isinstance(space, FlatBox) else None
        policy, inputs = _probe(victim, agent)
        if not (np.issubdtype(space.dtype, np.floating) or policy.block) or (flat and not any(flat.free)):
            raise ValueError(
                f"expected float observations to attack, got {space} for {agent!r}; leave the attack out, "
                f"or train on {TO_FLOAT}"
            )
        acts, own = victim.action_spaces[agent], held_attack(attack, victim, agent, channels)
        assert own is not None
        if flat and not own.perturbations.mask:
            instead = "say by the mask of the attack's perturbations which features it may touch"
            check_mask_is_named(flat.structure, acts, instead=instead, agent=agent)
        attack.objective_for(victim.distribution(agent))
        inside = at_network(own.perturbations, space, None, units="network").fitting(policy.block)
        inside.project(torch.zeros_like(inputs), inputs)
        if attack.ready:
            own.against(victim, agent)
        if attack.access in ("gradients", "learned") and not differentiable(policy, inputs):
            raise ValueError(
                f"expected a policy with gradients for the attack {attack.name!r}, got one for {agent!r} "
                "that torch cannot differentiate by its inputs; use square, noise-worst or transfer"
            )


def _check_units(attacks: Sequence[Attack], victim: Victim, agents: Sequence[str]) -> None:
    sized = [attack for attack in attacks if attack.sized and "words" not in attack.norms]
    largest = max((attack.perturbations.epsilon for attack in sized), default=0.0)
    for policy in (_probe(victim, agent)[0] for agent in agents):
        if policy.block is not None:
            check_radius(policy.embeddings, largest)


def _probe(victim: Victim, agent: str) -> tuple[VictimPolicy, Tensor]:
    """The policy of an agent at the beginning of an episode, and its inputs `[1, d]` from zeros."""
    obs = torch.zeros(1, *(victim.observation_spaces[agent].shape or ()))
    first = victim.memory().recall({agent: torch.zeros(1, dtype=torch.int64)})
    reads = isinstance(victim.modules[victim.module_of[agent]], TokenNetwork)
    policy = victim.policy(agent, state=first, tokens=obs.flatten(1).long() if reads else None)
    return policy, policy.embed(obs.long().flatten(1)) if reads else obs.flatten(1)


def fitted(evaluator: Evaluator, attacks: Sequence[Attack]) -> tuple[Attack, ...]:
    """The attacks, fitted where one is for one size only; others that are not ready are, with their rows."""
    fresh = [attack for attack in attacks if isinstance(attack, FittedAttack) and not attack.ready]
    once = {attack if attack.per_size else attack.at(1.0): attack for attack in fresh}
    evaluator.time.expect(sum(attack.seconds for attack in once.values()))
    learned: dict[Attack, Attack] = {}
    for attack in once.values():
        if attack.per_size:
            evaluator.tell(f"{attack.name}, which is fitted first")
            learned[attack] = fit(evaluator, attack)
            evaluator.time.finish(attack.seconds)
    return tuple(learned.get(attack, attack) for attack in attacks)


def fit(evaluator: Evaluator, attack: FittedAttack) -> Attack:
    """The attack fitted in the environment of the evaluation, whichever the victim comes from."""
    victim, spec = evaluator.victim, evaluator.spec
    own = resolve(victim.env_name, victim.env_kwargs) if victim.env_name else None
    if own is None or (own.name, dict(own.kwargs)) != (spec.name, dict(spec.kwargs)):
        victim = replace(victim, env_name=spec.name, env_kwargs=dict(spec.kwargs))
    return attack.fit(
        victim,
        evaluator.env,
        agents=evaluator.agents,
        seed=derived_seed(evaluator.seed, Purpose.FIT),
        units=evaluator.units,
        home=evaluator.home,
    )
