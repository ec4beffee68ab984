"""The team of each agent: scores are per team, and an adversary's gain is the loss of the others.

An environment of your own says so with an attribute `teams`, a dict from agent to team.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from marl_aajr.core.checks import one_of

ONE_TEAM = "team"

_Rule = Callable[[Any, Sequence[str]], dict[str, str]]


def teams_of(env: Any, agents: Sequence[str]) -> dict[str, str]:
    """The team of each agent.

    In this order: the environment's own `teams`; the adversaries against the others in particle
    environments (`mpe2`: tag, adversary, push, world_comm, crypto); every player for itself in
    PettingZoo's classic and Atari games, where a sum over players is often 0, except in the cooperative ones
    (Hanabi, Entombed); otherwise one team, `"team"`.

    Args:
        env: A PettingZoo environment.
        agents: Its possible agents.

    Returns:
        A team for each agent, in the order of `agents`.

    Raises:
        ValueError: If the environment's own `teams` leaves an agent out.
    """
    bare = env.unwrapped
    declared = getattr(bare, "teams", None)
    if declared is not None:
        return _declared(declared, agents)
    module = type(bare).__module__
    matching = [prefix for prefix in _RULES if f"{module}.".startswith(f"{prefix}.")]
    rule = _RULES[max(matching, key=len)] if matching else _one_team
    return rule(bare, agents)


def choose_agents(teams: Mapping[str, str], team: str | None, agents: Collection[str] | None) -> list[str]:
    """The agents under attack: the named ones, or everybody on the team.

    Raises:
        ValueError: an agent that is not there, or agents of several teams.
    """
    if agents is None:
        chosen = choose_team(teams, team)
        return [agent for agent in teams if teams[agent] == chosen]
    if not agents:
        raise ValueError("expected at least one agent to attack, got none; leave agents out for all of them")
    for agent in agents:
        one_of("agents", agent, teams)
    sides = {teams[agent] for agent in agents}
    if len(sides) > 1 or (team is not None and sides != {team}):
        raise ValueError(
            f"expected agents of one team, got {', '.join(f'{a} of {teams[a]}' for a in agents)}"
            + (f" for team {team!r}" if team is not None else "")
        )
    return [agent for agent in teams if agent in agents]


def choose_team(teams: Mapping[str, str], team: str | None) -> str:
    """The team under attack: the named one, or the largest (of equals, the first).

    Raises:
        ValueError: no such team.
    """
    sizes = Counter(teams.values())
    if team is None:
        return max(sizes, key=lambda name: sizes[name])
    one_of("a team", team, sizes)
    return team


def _declared(declared: Any, agents: Sequence[str]) -> dict[str, str]:
    if not isinstance(declared, Mapping) or any(agent not in declared for agent in agents):
        raise ValueError(
            f"expected the environment's teams to map each of {list(agents)} to a team, got "
            f"{declared!r}; add the missing agents"
        )
    return {agent: str(declared[agent]) for agent in agents}


def _one_team(env: Any, agents: Sequence[str]) -> dict[str, str]:
    return dict.fromkeys(agents, ONE_TEAM)


def _each_player(env: Any, agents: Sequence[str]) -> dict[str, str]:
    return {agent: str(agent) for agent in agents}


def _atari(env: Any, agents: Sequence[str]) -> dict[str, str]:
    # All games are of one class, and say which one they are in their metadata.
    together = "cooperative" in env.metadata["name"]
    return (_one_team if together else _each_player)(env, agents)


def _particles(env: Any, agents: Sequence[str]) -> dict[str, str]:
    adversaries = {a.name for a in env.world.agents if getattr(a, "adversary", False)}
    if not adversaries:
        return _one_team(env, agents)
    return {agent: "adversary" if agent in adversaries else "good" for agent in agents}


_RULES: dict[str, _Rule] = {
    "mpe2": _particles,
    "pettingzoo.atari": _atari,
    "pettingzoo.classic": _each_player,
    "pettingzoo.classic.hanabi": _one_team,
}
"""Longest matching module prefix wins."""
