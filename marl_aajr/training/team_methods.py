"""The method of each team of a run: whose modules have which regularizer, and which agents are attacked.

A configuration names teams; only the environment says which agents these are, and so which modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from marl_aajr.core.channels import check_channels, who_observes
from marl_aajr.core.checks import grouped
from marl_aajr.core.environment_values import split
from marl_aajr.regularizers import Regularizer
from marl_aajr.rollout.attack.beside_regularizers import taking_over
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.teams import check_teams
from marl_aajr.training.atla import ATLA
from marl_aajr.training.config import RunConfig
from marl_aajr.training.method import NO_METHOD, MethodConfig

if TYPE_CHECKING:  # it needs RLlib, and evaluations do not
    from marl_aajr.training.policy_mapping import PolicyMapping

_Adversary = TypeVar("_Adversary", RolloutAttack, ATLA)


@dataclass(frozen=True)
class TeamMethods:
    """The methods of a run's teams.

    Attributes:
        methods: of each module.
        regularizers: of the modules that have one.
        attack: the attack that agents act under, which are named unless they are all; None: there is none.
        atla: the same for ATLA.
    """

    methods: Mapping[str, MethodConfig]
    regularizers: Mapping[str, Regularizer]
    attack: RolloutAttack | None
    atla: ATLA | None


def team_methods(config: RunConfig, mapping: PolicyMapping) -> TeamMethods:
    """The methods of a run's teams.

    Raises:
        ValueError: a team that is not there or is named twice, one module for teams with different methods,
            or attacked agents of a team that the attack is not for.
    """
    known, env = list(dict.fromkeys(mapping.teams.values())), config.env.name
    by_team = config.method.by_team(known, env=env)

    def those_of(name: str) -> list[str]:
        return [team for team, method in by_team.items() if method.name == name]

    attacked = those_of(RolloutAttack.name)
    if config.rollouts is not None:
        plain = those_of(NO_METHOD)
        attacked = list(config.rollouts.teams or [team for team in known if team not in plain] or known)
        check_teams("rollouts.teams", attacked, known, env=env)
    of_module = grouped((module, mapping.teams[agent]) for agent, module in mapping.module_of.items())
    for module, teams in of_module.items():
        first, *others = [(by_team[team], team in attacked) for team in teams]
        if any(other != first for other in others):
            raise ValueError(
                f"method.teams: expected one method for module {module!r}, which plays for agents of "
                f"{', '.join(dict.fromkeys(teams))}, got several; {env} has {', '.join(known)}; give these "
                "teams modules of their own, or name all of them"
            )
    methods = {module: by_team[teams[0]] for module, teams in of_module.items()}
    found = {module: method.regularizer(env_steps=config.env_steps) for module, method in methods.items()}
    # Before channels become masks, which only a run can make of them.
    taken = {
        module: taking_over(each, config.attack, "mask", "scale", "channels")
        for module, each in found.items()
        if each is not None
    }
    atla = _against(config.atla, those_of(ATLA.name), mapping.teams)
    return TeamMethods(
        methods=methods,
        regularizers=_on_channels(taken, mapping, env=env),
        attack=_reaching(_against(config.attack, attacked, mapping.teams), mapping, env=env),
        atla=_reaching(atla, mapping, env=env),
    )


def _on_channels(
    regularizers: Mapping[str, Regularizer], mapping: PolicyMapping, *, env: str
) -> dict[str, Regularizer]:
    """The same on the channels that they name, without modules whose agents observe none of them."""
    agents = {m: [a for a, other in mapping.module_of.items() if other == m] for m in regularizers}
    found = {}
    for module, regularizer in regularizers.items():
        observed = {agent: mapping.channels.get(agent, {}) for agent in agents[module]}
        names = {c for each in getattr(regularizer, "members", (regularizer,)) for c in _channels_of(each)}
        check_channels(sorted(names), mapping.channels, [*chain.from_iterable(agents.values())], env=env)
        box, _ = split(mapping.observation_spaces[agents[module][0]])
        held = regularizer.held_to(observed, math.prod(box.shape))
        if held is not None:
            found[module] = held
    return found


def _channels_of(regularizer: Regularizer) -> tuple[str, ...]:
    return getattr(regularizer, "channels", None) or ()


def _reaching(adversary: _Adversary | None, mapping: PolicyMapping, *, env: str) -> _Adversary | None:
    """The same against the agents that observe some of the channels that it names."""
    if adversary is None or adversary.channels is None:
        return adversary
    agents = tuple(mapping.module_of if adversary.agents is None else adversary.agents)
    check_channels(adversary.channels, mapping.channels, agents, env=env)
    return replace(adversary, agents=who_observes(adversary.channels, mapping.channels, agents))


def _against(
    adversary: _Adversary | None, teams: Sequence[str], team_of: Mapping[str, str]
) -> _Adversary | None:
    """The same adversary, of the agents of these teams alone."""
    if adversary is None or set(team_of.values()) <= set(teams):
        return adversary
    if adversary.agents is None:
        return replace(adversary, agents=tuple(agent for agent, team in team_of.items() if team in teams))
    if others := [agent for agent in adversary.agents if team_of.get(agent, teams[0]) not in teams]:
        raise ValueError(
            f"expected agents of {', '.join(teams)} to attack, the teams that {adversary.name} is for, got "
            f"{others[0]!r} of {team_of[others[0]]}; leave agents out, or name its team"
        )
    return adversary
