"""The pool of a study: the opponents that every team meets in a game of several teams.

A method changes all sides of the run that it trains, so that a team's return against its own side says as
much about that side as about the team. The pool is one for all: no team has trained with a member of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.evaluation.company import read_company
from marl_aajr.evaluation.outcomes import Control
from marl_aajr.evaluation.replacements import resolve_replacements
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.study.pool_entry import OpponentEntry
from marl_aajr.study.runs import Settings, StudyRun, Variant, points, run_of, variants_of
from marl_aajr.study.study_config import MethodEntry, StudyConfig
from marl_aajr.training.files import Key, YamlSource
from marl_aajr.training.method import METHODS, NO_METHOD
from marl_aajr.victims.spaces import check_match

_ENTRIES: Key = ("evaluation", "opponents")


@dataclass(frozen=True)
class Opponent:
    """A member of the pool of one environment.

    Attributes:
        name: its name in tables, such as `none-s100`, `none-s100/opponent` or `random`.
        run: the run that is trained for it; None: nothing is.
        adversary: the opponent that is trained against the run's team, and plays; None: the run itself plays.
        victim: the folder of policies that are there already; None where a run is trained, or for a control.
    """

    name: str
    run: StudyRun | None = None
    adversary: AdversaryRequest | None = None
    victim: Path | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the nodes that train it."""
        if self.run is None:
            return ()
        own = () if self.adversary is None else (f"{self.run.name}/{self.adversary.name}",)
        return (self.run.name, *own)


Pool = Mapping[str, tuple[Opponent, ...]]
"""The members by title of the environment; games of one team have none."""


def pool(
    study: StudyConfig, source: YamlSource, *, tuned: Mapping[str, Settings] | None = None
) -> dict[str, tuple[Opponent, ...]]:
    """The members of a study's pool; `tuned` as for `runs`.

    Where the study's grid has several values, members are trained with the first ones; see `pool_doubts`.

    Raises:
        ValueError: an unknown method, seeds that the study trains with, policies of another environment or of
            other agents than the opponents', a member that is named twice, or a game without members.
    """
    entries = study.evaluation.opponents
    games = [game for game in _games(study, source) if game.others] if entries else []
    if entries and not games:
        text = "expected an environment of several teams to meet opponents in, got none; remove them"
        raise source.problem(_ENTRIES, text)
    found: dict[str, dict[str, Opponent]] = {game.title: {} for game in games}
    for i in range(len(entries)):
        for title, member in _members(study, i, games, source=source, tuned=tuned):
            if member.name in found[title]:
                text = f"expected each opponent once, got {member.name} twice; remove one"
                raise source.problem((*_ENTRIES, i), text)
            found[title][member.name] = member
    for title, members in found.items():
        if not members:
            text = f"expected opponents that play {title}, got none; add some, such as random"
            raise source.problem(_ENTRIES, text)
    return {title: tuple(members.values()) for title, members in found.items()}


def trained_for(pool: Pool) -> tuple[StudyRun, ...]:
    """The runs that are trained for the pool, each once."""
    runs = (member.run for members in pool.values() for member in members if member.run is not None)
    return tuple({run.name: run for run in runs}.values())


def pool_doubts(study: StudyConfig) -> Iterator[str]:
    """Sentences about what a pool does not make fair, where there is one."""
    entries = study.evaluation.opponents
    if entries and study.tune is not None:
        yield (
            "Settings are tuned by play of each team against its own side, before there is a pool: what "
            "makes its own side easier may have been chosen."
        )
    several = {key: values[0] for key, values in study.grid.items() if len(values) > 1}
    if several and any(entry.method is not None for entry in entries):
        first = ", ".join(f"{key} {value}" for key, value in several.items())
        yield (
            f"The pool is trained with the first values of the study's grid alone ({first}): teams trained "
            "with these have met opponents more like it."
        )


def mixed(study: StudyConfig, source: YamlSource) -> frozenset[str]:
    """The titles of the environments in which seeds play with each other; see `EvaluationEntry.partners`.

    Raises:
        ValueError: a study of one seed, or without a team of several agents.
    """
    if study.evaluation.partners is None:
        return frozenset()
    key = ("evaluation", "partners")
    if len(study.seeds) < 2:
        raise source.problem(key, "expected several seeds that play with each other, got one; add some")
    found = frozenset(game.title for game in _games(study, source) if game.size > 1)
    if not found:
        text = "expected an environment whose judged team has several agents, got none; remove partners"
        raise source.problem(key, text)
    return found


@dataclass(frozen=True)
class _Game:
    """An environment: its place in the study, the size of the judged team, and the agents of other teams."""

    e: int
    title: str
    spec: EnvironmentSpec
    size: int
    others: tuple[str, ...]

    def check_control(self, control: Control) -> None:
        """Raise `ValueError` where a control cannot play the other teams."""
        with closing(make_batch(self.spec, 1, flat=True)) as env:
            request, members = (
                f"{control}:{','.join(self.others)}",
                [a for a in env.teams if a not in self.others],
            )
            resolve_replacements([request], env, members=members)


def _games(study: StudyConfig, source: YamlSource) -> Iterator[_Game]:
    for e, environment in enumerate(study.environments):
        try:
            spec = resolve(environment.name, environment.kwargs)
            game = spec.make()
            game.close()
            judged = choose_agents(game.teams, environment.team, None)
        except ValueError as error:
            raise source.problem(("environments", e), str(error)) from None
        others = tuple(agent for agent in game.teams if agent not in judged)
        yield _Game(e, environment.title, spec, len(judged), others)


def _members(
    study: StudyConfig,
    i: int,
    games: Sequence[_Game],
    *,
    source: YamlSource,
    tuned: Mapping[str, Settings] | None,
) -> Iterator[tuple[str, Opponent]]:
    """The members of entry i, each after the title of its game."""
    entry, key = study.evaluation.opponents[i], (*_ENTRIES, i)
    if entry.method is not None:
        for game in games:
            for run in _runs(study, game.e, entry, key, source=source, tuned=tuned):
                name = run.name.removeprefix(f"{game.title}-")
                name += "" if entry.adversary is None else f"/{entry.adversary.name}"
                yield game.title, Opponent(name, run, entry.adversary)
        return
    folder = None if entry.victim is None else source.path.parent.absolute() / entry.victim
    try:
        if folder is None:
            assert entry.control is not None
            for game in games:
                game.check_control(entry.control)
                yield game.title, Opponent(entry.control)
            return
        for game in _played_by(folder, games):
            yield game.title, Opponent(folder.name, victim=folder)
    except ValueError as error:
        raise source.problem(key, str(error)) from None


def _played_by(folder: Path, games: Sequence[_Game]) -> Sequence[_Game]:
    """The games that the policies in a folder were trained in, or else those with other arguments.

    Raises:
        ValueError: there are none, or no policies, or they play other agents or with other spaces.
    """
    (found,) = read_company({folder.name: folder}, None)
    if found.trained is None:
        raise ValueError(f"expected an opponent that names its environment, got {folder}; set env_name")
    factory, arguments, _ = resolve(*found.trained).factory()
    same = [game for game in games if game.spec.factory()[0] == factory]
    if not same:
        known = ", ".join(game.title for game in games)
        raise ValueError(f"expected an opponent in {known}, got {folder}, which plays {found.trained[0]}")
    games = [game for game in same if game.spec.factory()[1] == arguments] or same
    for game in games:
        with closing(make_batch(game.spec, 1, flat=True)) as env:
            check_match(found.who, env, agents=game.others, what=f"an opponent in {game.title}")
    return games


def _runs(
    study: StudyConfig,
    e: int,
    entry: OpponentEntry,
    key: Key,
    *,
    source: YamlSource,
    tuned: Mapping[str, Settings] | None,
) -> Iterator[StudyRun]:
    """The runs to train for an entry on the environment of number e."""
    assert entry.method is not None
    if shared := sorted(set(entry.seeds) & set(study.seeds)):
        raise source.problem(
            (*key, "seeds"),
            f"expected seeds that the study does not use, got {shared}: an opponent that trained in this "
            "study has met a team before; choose others",
        )
    for variant in _methods(study, e, entry.method, key, source=source):
        for seed in entry.seeds:
            point = next(points(study.grid))
            yield run_of(variant, point, seed, (*key, "seeds"), source=source, tuned=tuned)


def _methods(study: StudyConfig, e: int, wanted: str, key: Key, *, source: YamlSource) -> Sequence[Variant]:
    """The variants of the study that a name or a pattern means, or else one of a method beside the study."""
    title = study.environments[e].title
    every = [
        variant
        for m, method in enumerate(study.methods)
        for variant in variants_of(study, e, method, ("methods", m))
    ]
    meant = [
        variant
        for variant in every
        if wanted in (variant.method.label, variant.method.name)
        or fnmatchcase(variant.name.removeprefix(f"{title}-"), wanted)
    ]
    if meant:
        return meant
    if wanted in (NO_METHOD, *METHODS):
        return list(variants_of(study, e, MethodEntry(name=wanted), key))
    known = ", ".join(variant.name.removeprefix(f"{title}-") for variant in every)
    text = f"expected a method of the study ({known}) or another one's name, got {wanted!r}"
    raise source.problem((*key, "method"), text)
