"""The team of each agent: scores are per team, and an adversary's gain is the loss of the others.

An environment says so with an attribute `teams`; whoever uses it, with the setting `env.teams`. Names of
agents decide nothing: where they suggest sides, somebody must say which there are.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from marl_aajr.core.channels import CHANNELS
from marl_aajr.core.checks import grouped, one_of
from marl_aajr.core.environment_values import agent_name

ONE_TEAM = "team"
TEAMS = "env.teams"
"""The setting; beside the arguments of an environment, the key that it stands under."""

SAID = (TEAMS, CHANNELS)
"""The settings that say something of an environment, among its arguments."""

_SIDE = re.compile(
    r"(?:team|side|squad|army|faction)[_-]?(?:\d+|[a-z](?![a-z]))|(?<![a-z])(?:red|blue|green|yellow|ally|enemy|"
    r"opponent|adversary|attacker|defender|predator|prey|pursuer|evader|hider|seeker|home|away)(?![a-z])"
)


def teams_of(env: Any, agents: Mapping[str, Hashable], *, name: str, said: Any = None) -> dict[str, str]:
    """The team of each agent.

    In this order: `said`; the `teams` of the outermost wrapper that has some; the adversaries against the
    others in particle environments (`mpe2`: tag, adversary, push, world_comm, crypto); the sides of MAgent2's
    battles; every player for itself in PettingZoo's classic and Atari games, where a sum over players is
    often 0, except in the cooperative ones (Hanabi, Entombed); otherwise one team, `"team"`.

    Args:
        env: A PettingZoo environment.
        agents: The environment's own key of each possible agent, by name.
        name: The environment's, in messages.
        said: The teams that whoever uses the environment gives, in any form of `read_teams`.

    Returns:
        A team for each agent, in the order of `agents`.

    Raises:
        ValueError: If `teams` cannot be read or leaves an agent out, or nothing but the names of the agents
            says that there are sides.
    """
    said = outermost(env, "teams") if said is None else said
    if said is not None:
        return read_teams(said, agents, name=name)
    module = type(env.unwrapped).__module__
    matching = [prefix for prefix in _RULES if f"{module}.".startswith(f"{prefix}.")]
    if matching:
        team_of = _RULES[max(matching, key=len)]
        return {agent: team_of(env.unwrapped, agent) for agent in agents}
    if len(set(map(_side, agents))) > 1:
        raise ValueError(
            f"expected to know who plays with whom in {name}, got agents whose names suggest sides and no "
            f"teams; say so: {_line(agents)}, or env.teams={ONE_TEAM} if all of them play together"
        )
    return dict.fromkeys(agents, ONE_TEAM)


def read_teams(said: Any, agents: Mapping[str, Hashable], *, name: str) -> dict[str, str]:
    """The team of each agent, as people write it.

    Args:
        said: Agent -> team, where a pattern such as `red_*` stands for many agents; team -> its agents; a
            list of lists of agents; a list with the team of each agent; one name for all; or a function of an
            agent, or of nothing that returns one of these.
        agents: The environment's own key of each agent, by name.
        name: The environment's, in messages.

    Raises:
        ValueError: Something else, or no team for an agent.
    """
    given = said
    if callable(given):
        of_agent = inspect.signature(given).parameters
        given = {agent: given(key) for agent, key in agents.items()} if of_agent else given()
    if isinstance(given, str) and not re.search(r"[][{}*?:,]", given):
        given = {"*": given}
    elif _is_group(given):
        groups = list(given)
        if all(map(_is_group, groups)):
            given = {f"team_{i}": group for i, group in enumerate(groups)}
        elif len(groups) == len(agents) and not {*map(agent_name, groups)} & set(agents):
            given = dict(zip(agents, groups, strict=True))
    teams: dict[str, str] = {}
    if isinstance(given, Mapping):
        members = [(member, team) for team, group in given.items() if _is_group(group) for member in group]
        listed = {agent_name(agent): agent_name(team) for agent, team in members or given.items()}
        for agent in agents:
            patterns = [agent] if agent in listed else [key for key in listed if fnmatchcase(agent, key)]
            if patterns:
                teams[agent] = listed[patterns[0]]
    if missing := [agent for agent in agents if agent not in teams]:
        raise ValueError(
            f"expected the teams of {name} to have each of its {len(agents)} agents, got {said!r}, without "
            f"{_some(missing)}; write them as {_line(agents)}"
        )
    return teams


def sideless(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an environment but for what is only said of it: the same is played without."""
    return {name: value for name, value in kwargs.items() if name not in SAID}


def announce(name: str, teams: Mapping[str, str], *, attacked: str | None = None) -> None:
    """Tells the logger `marl_aajr` (stderr, where nobody has configured logging) who plays with whom."""
    logger = logging.getLogger("marl_aajr")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    sides = grouped((team, agent) for agent, team in teams.items())
    shown = [f"{side} ({_some(members)})" for side, members in sides.items()]
    words = "one team" if len(sides) == 1 else f"{len(sides)} teams"
    suffix = "" if attacked is None or len(sides) == 1 else f"; {attacked} is attacked"
    logger.info("%s: %s, %s%s", name, words, " against ".join(shown), suffix)


def choose_agents(teams: Mapping[str, str], team: str | None, agents: Collection[str] | None) -> list[str]:
    """The agents under attack: the named ones, or the whole team (None: the largest, of equals the first).

    Raises:
        ValueError: a team or an agent that is not there, or agents of several teams.
    """
    if agents is None:
        sizes = Counter(teams.values())
        if team is not None:
            one_of("a team", team, sizes)
        chosen = max(sizes, key=sizes.__getitem__) if team is None else team
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


def check_teams(field: str, named: Sequence[str], known: Sequence[str], *, env: str) -> None:
    """Raise `ValueError` for a setting that names teams which an environment has not, or one twice."""
    there = ", ".join(dict.fromkeys(known))
    if strangers := [team for team in named if team not in known]:
        raise ValueError(f"{field}: expected teams of {env}, {there}, got {', '.join(strangers)}")
    if twice := [team for team, times in Counter(named).items() if times > 1]:
        raise ValueError(
            f"{field}: expected each team once, got {', '.join(twice)} again; {env} has {there}; remove one"
        )


def outermost(env: Any, attribute: str) -> Any:
    """The attribute of the outermost wrapper of an environment that has it; None: none has."""
    while env is not None:
        if (value := getattr(env, attribute, None)) is not None:
            return value
        inner = [vars(env).get(name) for name in ("env", "aec_env", "par_env")]
        unwrapped = getattr(env, "unwrapped", None)
        env = next((other for other in inner if other is not None), None if unwrapped is env else unwrapped)
    return None


def _some(agents: Sequence[str]) -> str:
    return ", ".join(agents[:4]) + (f", … {len(agents)} in all" if agents[4:] else "")


def _is_group(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | Mapping)


def _side(agent: str) -> str | None:
    """The side that a name suggests."""
    found = _SIDE.search(agent.lower())
    return found[0] if found else None


def _line(agents: Collection[str]) -> str:
    """A line that says the teams that the names of the agents suggest, to be copied; `*` is for numbers."""
    teams = {
        re.sub(r"\d+$", "*", agent): _side(agent) or re.sub(r"[_-]?\d*$", "", agent) or ONE_TEAM
        for agent in agents
    }
    shown = ", ".join(f"{pattern}: {team}" for pattern, team in list(teams.items())[:20])
    return f"--set {TEAMS}='{{{shown}}}' (in Python kwargs={{'{TEAMS}': ...}})"


def _atari(env: Any, agent: str) -> str:
    # All games are of one class, and say which one they are in their metadata.
    return ONE_TEAM if "cooperative" in env.metadata["name"] else agent


def _particles(env: Any, agent: str) -> str:
    adversaries = {a.name for a in env.world.agents if getattr(a, "adversary", False)}
    good = "good" if adversaries else ONE_TEAM
    return "adversary" if agent in adversaries else good


def _magent(env: Any, agent: str) -> str:
    # Kinds of soldiers are parts of names: redmelee_0 and redranged_0 are on one side.
    return next(filter(agent.startswith, ("red", "blue", "predator", "prey", "tiger", "deer")), ONE_TEAM)


_RULES: dict[str, Callable[[Any, str], str]] = {
    "magent2": _magent,
    "mpe2": _particles,
    "pettingzoo.atari": _atari,
    "pettingzoo.classic": lambda _, agent: agent,
    "pettingzoo.classic.hanabi": lambda *_: ONE_TEAM,
    "pettingzoo.sisl": lambda *_: ONE_TEAM,
    "shimmy.openspiel_compatibility": lambda _, agent: agent,
}
"""The team of an agent in the environments of a package; the longest matching module prefix wins."""
