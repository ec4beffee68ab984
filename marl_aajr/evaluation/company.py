"""The company of a judged team: opponents that play the other teams, and partners in its own.

A team that is judged against its own side is judged against what that side has learned, which a method that
weakens both flatters. Opponents are the same for every team, and nobody's training partners. A partner takes
the place of a member (ad-hoc teamwork, zero-shot coordination): who only gets on with those it has trained
with earns less with a stranger. Opponents are met without and under every attack. Partners are met without
one: an attack is found for a team of the victim's own, and under it nobody could tell what the partner costs.

Both are read without an environment (`read_company`), then resolved in one, and refused by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from marl_aajr.adversaries import agent_game
from marl_aajr.adversaries.agent_game import AgentThreat
from marl_aajr.core.checks import one_of
from marl_aajr.evaluation import sources
from marl_aajr.evaluation.outcomes import OWN, ReplacementKind
from marl_aajr.evaluation.replacements import CONTROLS, Replacement
from marl_aajr.evaluation.result import Check
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.teams import sideless
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.victims import Victim, fingerprint
from marl_aajr.victims.spaces import check_match, check_victim

Company = Sequence[Path | str] | Mapping[str, Victim | Path | str]
"""Players, named by the keys of a mapping, else by what is given: `random`, `idle`, or `FOLDER[:PART]`, the
folder of a run, a saved victim or a checkpoint, and the team or the agents that it is to play."""


@dataclass(frozen=True, eq=False)
class Companion:
    """A player from elsewhere, under its name; not resolved in an environment yet.

    Attributes:
        who: the policies; a text names a control.
        part: the team or the agents that it is to play; empty: all that it can.
        trained: the environment of its training and its arguments; None: not known.
        against: the fingerprint of the victims that it was trained against; empty: of none.
    """

    name: str
    who: Victim | str
    part: str = ""
    trained: tuple[str, Mapping[str, Any]] | None = None
    against: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """The victim that meets the company, its environment, and the agents under attack, all of one team."""

    victim: Victim
    env: BatchedEnv
    spec: EnvironmentSpec
    members: Sequence[str]

    @property
    def team(self) -> str:
        """The judged team."""
        return self.env.teams[self.members[0]]


def read_company(given: Company, env: EnvironmentSpec | None) -> list[Companion]:
    """The players of some folders, in the order in which they are given.

    Args:
        given: see `Company`.
        env: the environment of RLlib checkpoints among them.

    Raises:
        ValueError: no such folder or player in it, or two of one name.
    """
    if isinstance(given, Mapping):
        found = [_read(name, who, env) for name, who in given.items()]
    else:
        split = [_split(str(each)) for each in given]
        short = [_joined(Path(path).resolve().name if path not in CONTROLS else path, p) for path, p in split]
        names = [s if short.count(s) == 1 else str(each) for s, each in zip(short, given, strict=True)]
        found = [_read(name, who, env) for name, who in zip(names, given, strict=True)]
    names = [each.name for each in found]
    for name in names:
        if name == OWN or names.count(name) > 1:
            raise ValueError(
                f"expected names of their own for opponents and partners, and none that is {OWN!r}, got "
                f"{', '.join(names)}; rename one: in Python {{name: folder}}"
            )
    return found


def resolve_opponents(company: Sequence[Companion], judged: Judged) -> dict[str, Replacement]:
    """Opponents of the members' team by name; agents of other teams that one does not play stay the victim's.

    Raises:
        ValueError: a game of one team, a team that does not exist or that is the judged one, or a player that
            is the victim itself, was trained against it or elsewhere, or does not fit.
    """
    team, teams = judged.team, judged.env.teams
    others = {agent: side for agent, side in teams.items() if side != team}
    if company and not others:
        raise ValueError(
            f"expected a game of several teams for the opponent {company[0].name!r}, got one in which all "
            f"are of {team!r}; let it be a partner (--partner), or say who plays with whom (env.teams)"
        )
    found: dict[str, Replacement] = {}
    for each in company:
        if each.part:
            one_of(f"a team for the opponent {each.name!r}", each.part, dict.fromkeys(teams.values()))
        can = each.who.agents if isinstance(each.who, Victim) and each.against else tuple(teams)
        agents = tuple(a for a, side in others.items() if each.part in ("", side) and a in can)
        if not agents:
            raise ValueError(
                f"expected an opponent of another team than {team!r}, which is judged, got {each.name!r}, "
                f"which plays for it; name one of {', '.join(dict.fromkeys(others.values()))}, or judge "
                "another team: --team"
            )
        found[each.name] = _resolved(each, "opponent", agents, judged)
    _check_different(found)
    return found


def resolve_partners(company: Sequence[Companion], judged: Judged) -> list[Replacement]:
    """Partners in the place of each of the members in turn, or of those named in a part, together.

    Raises:
        ValueError: an agent that is none of the team's, or as `resolve_opponents`.
    """
    team = judged.team
    mine = [agent for agent, side in judged.env.teams.items() if side == team]
    found: list[Replacement] = []
    for each in company:
        asked = [agent.strip() for agent in each.part.split(",")] if each.part else []
        for agent in asked:
            one_of(f"a member of team {team!r} for the partner {each.name!r}", agent, mine)
        places = [tuple(a for a in mine if a in asked)] if asked else [(agent,) for agent in judged.members]
        found += [_resolved(each, "partner", agents, judged) for agents in places]
    return found


def company_notes(company: Iterable[Sequence[Companion]], spec: EnvironmentSpec) -> Iterator[Check]:
    """A warning about a player that was trained in the same environment with other arguments."""
    for each in chain.from_iterable(company):
        there = sideless(each.trained[1]) if each.trained else sideless(spec.kwargs)
        if there != sideless(spec.kwargs):
            text = (
                f"It was trained in {spec.name} with {there}, not with {sideless(spec.kwargs)}: one that is "
                "trained here may play better."
            )
            yield Check(f"company of {each.name}", "warn", text)


def _split(text: str) -> tuple[str, str]:
    """A folder or a control, and the part behind it."""
    folder, colon, part = text.rpartition(":")
    if colon and part and not Path(text).exists() and (folder in CONTROLS or Path(folder).exists()):
        return folder, part
    return text, ""


def _joined(name: str, part: str) -> str:
    return f"{name}:{part}" if part else name


def _read(name: str, given: Victim | Path | str, env: EnvironmentSpec | None) -> Companion:
    if not isinstance(given, Path | str):
        check_victim(given, what=f"a victim for {name!r}")
        return Companion(name, given, trained=_trained(given))
    text, part = _split(str(given))
    if text in CONTROLS:
        return Companion(name, text, part)
    run = RunDirectory(text)
    if run.is_run and run.config().env.name == agent_game.GAME:
        threat = AgentThreat(**run.config().env.kwargs)
        if threat.kind != "traitor":
            sources.check_finished(run)
            trained = threat.env, threat.env_kwargs
            return Companion(name, Victim.load(run.victim), part, trained, against=threat.digest)
    victim = sources.find_victim(Path(text), None if run.is_run else env)
    return Companion(name, victim, part, _trained(victim))


def _trained(victim: Victim) -> tuple[str, Mapping[str, Any]] | None:
    return (victim.env_name, victim.env_kwargs) if victim.env_name else None


def _resolved(each: Companion, what: str, agents: tuple[str, ...], judged: Judged) -> Replacement:
    """The player as an opponent or a partner, who may be one: it is a stranger that fits."""
    if not isinstance(each.who, Victim):
        if what == "partner":
            raise ValueError(
                f"expected a run or a victim as a partner, got {each.name!r}; say --replace {each.name}"
            )
        return Replacement(kind="random" if each.who == "random" else "idle", agents=agents)
    named = f"the {what} {each.name!r}"
    mine, its = _fingerprint(judged.victim), _fingerprint(each.who)
    if each.who is judged.victim or (mine and mine == its):
        raise ValueError(
            f"expected {named} to be somebody else, got the evaluated victim itself, whose own side is "
            "played anyway; name another run"
        )
    if mine and each.against == mine:
        raise ValueError(
            f"expected {named} to meet every team as a stranger, got one that was trained against this one; "
            "evaluate it as its adversary: --adversary"
        )
    here = {judged.spec.name, _environment(_trained(judged.victim))}
    if (there := _environment(each.trained)) and there not in here:
        raise ValueError(
            f"expected {named} to be trained in {judged.spec.name}, got one of {there}; name another run"
        )
    check_match(each.who, judged.env, agents=agents, what=named)
    kind: ReplacementKind = "partner" if what == "partner" else "stranger"
    return Replacement(kind=kind, agents=agents, victim=each.who, source=each.name)


def _environment(trained: tuple[str, Mapping[str, Any]] | None) -> str:
    """The full name of an environment, as far as it can be found; empty where none is known."""
    if trained is None:
        return ""
    with suppress(ValueError):
        return resolve(trained[0], trained[1]).name
    return trained[0]


def _fingerprint(victim: Victim) -> str:
    """That of a victim that can be saved; empty for another."""
    with suppress(ValueError):
        return fingerprint(victim)
    return ""


def _check_different(opponents: Mapping[str, Replacement]) -> None:
    """Raise `ValueError` where one player has two names: it would count twice in every mean."""
    seen: dict[tuple[object, ...], str] = {}
    for name, who in opponents.items():
        print_ = _fingerprint(who.victim) or id(who.victim) if who.victim is not None else who.kind
        if (first := seen.setdefault((print_, who.agents), name)) != name:
            raise ValueError(f"expected each opponent once, got {first!r} and {name!r}, which are the same")
