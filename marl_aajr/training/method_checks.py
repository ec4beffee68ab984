"""Checks of a run's methods against its modules, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from marl_aajr.core.checks import grouped
from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import split
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.rllib.plugin.observation_layout import chosen_parts
from marl_aajr.rollout.attack.beside_regularizers import check_beside
from marl_aajr.rollout.attack.members import attacked_members
from marl_aajr.rollout.attack.on_words import attack_on, check_observations
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.training.atla import ATLA
from marl_aajr.training.atla_phases import ATLAPhases
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import PolicyMapping
from marl_aajr.training.team_methods import TeamMethods


def check_regularizers(
    config: RunConfig, mapping: PolicyMapping, methods: TeamMethods, attacked: Mapping[str, RolloutAttack]
) -> None:
    """Raise `ValueError` for a regularizer that its module cannot be trained with, beside these attacks."""
    offers: frozenset[Need] = EVERYTHING
    # A centralised critic does not evaluate an observation alone, nor that of a language model embeddings.
    if config.model.critic != "own" or config.model.language is not None:
        offers -= {"critic"}
    if config.algorithm != "ppo":  # the losses of APPO and IMPALA are not taken row by row
        offers -= {"policy_loss", "advantages"}
    for module, regularizer in methods.regularizers.items():
        agent = mapping.modules[module]
        try:
            check_beside(regularizer, attacked.get(module))
            regularizer.check(from_space(mapping.action_spaces[agent]), offers=offers)
            members = getattr(regularizer, "members", (regularizer,))
            if config.model.language is not None and any(member.needs_layers for member in members):
                raise ValueError(
                    "expected a network of known layers, got a language model; use smooth_policy"
                )
            if (leaves := regularizer.perturbed_leaves) is not None:
                chosen_parts(mapping.observation_spaces[agent], leaves)
        except ValueError as error:
            raise ValueError(f"method {methods.methods[module].name}, module {module!r}: {error}") from None


def check_attack(attack: RolloutAttack, config: RunConfig, team: PolicyMapping) -> dict[str, RolloutAttack]:
    """The attack on each module that has attacked agents; `ValueError` for one that cannot be played."""
    attack.check_copies(config.resources.copies)
    groups = grouped((module, agent) for agent, module in team.module_of.items())
    members = attacked_members(attack, {m: tuple(agents) for m, agents in groups.items()}, team.channels)
    found = {}
    for module, places in members.items():
        agent = groups[module][0]
        box, _ = split(team.observation_spaces[agent])
        try:
            check_observations(attack, box.dtype, reads_words=config.model.language is not None)
            # The critics of our own modules stay with the learner.
            attack.check(from_space(team.action_spaces[agent]), offers=())
            attack.check_memory(config.model.lstm is not None)
            nothing = torch.zeros(1, math.prod(box.shape))
            observed = {groups[module][i]: team.channels.get(groups[module][i], {}) for i in places}
            found[module] = attack_on(attack, observed, nothing.shape[-1])
            found[module].perturbations(1.0).project(nothing, nothing)
        except ValueError as error:
            raise ValueError(f"rollouts under attack, module {module!r}: {error}") from None
    return found


def check_atla(config: RunConfig, atla: ATLAPhases) -> None:
    """Raise `ValueError` for what cannot be trained in alternation with adversaries."""
    if config.resources.runner != "fast":
        raise ValueError(
            f"expected resources.runner fast for method {ATLA.name}, got {config.resources.runner}: "
            "RLlib's own knows no game in which several agents wait for several others"
        )
    if config.model.critic == "joint":
        raise ValueError(
            f"expected model.critic own or state for method {ATLA.name}, got joint: agents and "
            "their adversaries never see something at the same time"
        )
    if atla.settings.adversary == "pa-ad" and config.model.lstm is not None:
        raise ValueError(
            f"expected no model.lstm for method {ATLA.name} with adversary pa-ad, whose ascent "
            f"knows no memory, got {config.model.lstm}; use sa-rl"
        )
