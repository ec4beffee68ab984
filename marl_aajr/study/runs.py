"""The runs of a study, spelled out: every combination of its axes as a name and a run's configuration.

What is wrong with a combination is said with the line of the file that it comes from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marl_aajr.study.study_config import EnvironmentEntry, Grid, MethodEntry, StudyConfig
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.fields import put
from marl_aajr.training.files import Key, YamlSource

Settings = Mapping[str, Any]
"""Dotted setting of a run → value."""

Parts = tuple[tuple[Key, Mapping[str, Any]], ...]
"""Settings, each group with its place in the study's file; later ones over earlier ones."""


@dataclass(frozen=True)
class Variant:
    """One method on one environment: what is tuned, and what differs only in the study's grid and the seed.

    Its name is such as `simple_spread_v3-aajr-coefficient=0.001`, its `key` that of the method in the file.
    """

    environment: EnvironmentEntry
    method: MethodEntry
    key: Key
    name: str
    parts: Parts


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; `point` has the values of the study's grid, which all methods share."""

    name: str
    config: RunConfig
    variant: Variant
    point: tuple[tuple[str, Any], ...]
    parts: Parts = field(repr=False, compare=False)

    def where(self, key: str, source: YamlSource) -> str:
        """The place of a dotted setting in the study's file."""
        return _blame(key, self.parts, source)


_AXES = {"seed": "seeds", "env.name": "environments", "method.name": "methods"}
"""The settings that have a list of their own in a study's file, and may stand nowhere else in it."""


def check_axes(study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError`, a line for each, where a seed, environment or method stands among settings."""
    parts: Parts = (
        (("run",), study.run),
        (("grid",), nested(study.grid)),
        *((("environments", e, "run"), entry.run) for e, entry in enumerate(study.environments)),
        *((("methods", m, "run"), entry.run) for m, entry in enumerate(study.methods)),
        *((("methods", m, "search"), nested(entry.search)) for m, entry in enumerate(study.methods)),
    )
    problems = [
        f"{_blame(key, ((where, part),), source)}: {'.'.join(map(str, where))}: expected {key} under {axis} "
        "alone, got it here too; remove it"
        for where, part in parts
        for key, axis in _AXES.items()
        if _names(part, key)
    ]
    if problems:
        raise ValueError("\n".join(problems))


def _names(part: Mapping[str, Any], key: str) -> bool:
    """Whether settings have a key, or a name in place of the section that it stands in: `method: aajr`."""
    section, *name = key.split(".")
    return section in part and (not isinstance(part[section], Mapping) or set(name) <= set(part[section]))


def variants(study: StudyConfig) -> Iterator[Variant]:
    """Every method, spelled out, on every environment."""
    for e in range(len(study.environments)):
        for m, method in enumerate(study.methods):
            yield from variants_of(study, e, method, ("methods", m))


def variants_of(study: StudyConfig, e: int, method: MethodEntry, key: Key) -> Iterator[Variant]:
    """A method, spelled out, on the environment of number e; `key` is the method's place in the file."""
    environment = study.environments[e]
    for point in points(method.grid):
        settings = {"name": method.name, **method.settings}
        parts = (
            (("run",), study.run),
            (("environments", e, "run"), environment.run),
            (("environments", e), {"env": {"name": environment.name, "kwargs": environment.kwargs}}),
            ((*key, "run"), method.run),
            (key, {"method": settings}),
            ((*key, "grid"), {"method": nested(dict(point))}),
        )
        name = _named(environment.title, method.title, point=point)
        yield Variant(environment, method, key, name, parts)


def runs(
    study: StudyConfig, source: YamlSource, tuned: Mapping[str, Settings] | None = None
) -> tuple[StudyRun, ...]:
    """All runs of a study, in the order of its file; `tuned`: what was found by variant, None: examples.

    Raises:
        ValueError: one line per problem: settings that no run can have, and names or configurations that two
            runs share.
    """
    found: dict[str, StudyRun] = {}
    trained: dict[str, StudyRun] = {}
    problems: dict[str, None] = {}
    for variant in variants(study):
        for point in points(study.grid):
            for seed in study.seeds:
                try:
                    run = run_of(variant, point, seed, ("seeds",), source=source, tuned=tuned)
                    _check_new(run, found.get(run.name), trained.get(run.config.model_dump_json()), source)
                except ValueError as error:
                    problems |= dict.fromkeys(str(error).splitlines())
                else:
                    found[run.name] = trained[run.config.model_dump_json()] = run
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(found.values())


def run_of(
    variant: Variant,
    point: tuple[tuple[str, Any], ...],
    seed: int,
    seeds: Key,
    *,
    source: YamlSource,
    tuned: Mapping[str, Settings] | None,
) -> StudyRun:
    """The run of a variant at a point of the study's grid, with a seed that stands at `seeds` in the file.

    Raises:
        ValueError: one line per problem: settings that no run can have.
    """
    searched = {key: space.example for key, space in variant.method.search.items()}
    parts = (
        *variant.parts,
        ((*variant.key, "search"), nested((tuned or {}).get(variant.name, searched))),
        (("grid",), nested(dict(point))),
        (seeds, {"seed": seed}),
    )
    name = f"{_named(variant.name, point=point)}-s{seed}"
    return StudyRun(name, _configuration(parts, source), variant, point, parts)


def _configuration(parts: Parts, source: YamlSource) -> RunConfig:
    """A run's configuration out of parts; each line of an error begins with the place of its part."""
    try:
        return make_config(merged(*(part for _, part in parts)))
    except ValueError as error:
        lines = str(error).splitlines()
        raise ValueError("\n".join(f"{_blame(line, parts, source)}: {line}" for line in lines)) from None


def points(grid: Grid) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Every combination of a grid; one empty combination where it has no axes."""
    for values in itertools.product(*grid.values()):
        yield tuple(zip(grid, values, strict=True))


def nested(settings: Settings) -> dict[str, Any]:
    """`{"ppo.lr": 1}` as `{"ppo": {"lr": 1}}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        put(result, key, value)
    return result


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where several have a value, the last one's."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(result.get(key), Mapping) and isinstance(value, Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def _check_new(run: StudyRun, namesake: StudyRun | None, twin: StudyRun | None, source: YamlSource) -> None:
    where = source.where(run.variant.key)
    if namesake is not None:
        raise ValueError(
            f"{where}: expected every run to have a name of its own, got {run.name} twice, also from "
            f"{source.where(namesake.variant.key)}; give one of the methods or environments a label"
        )
    if twin is not None:
        raise ValueError(
            f"{where}: expected every run once, got {run.name} and {twin.name} with the same settings; "
            "remove one"
        )


def _blame(line: str, parts: Parts, source: YamlSource) -> str:
    """The place of the setting that an error line begins with."""
    key = line.partition(":")[0].split(".")
    best, place = 0, parts[0][0]
    for where, part in parts:
        depth = _depth(part, key)
        if depth >= best:
            best, place = depth, where
    for skipped in range(len(key)):
        # In the file an environment's and a method's settings stand without "env." and "method.".
        for tail in (key[skipped:], [".".join(key[skipped:])]):
            if (found := source.where((*place, *tail))) != source.where(place):
                return found
    return source.where(place)


def _depth(part: Any, key: Sequence[str]) -> int:
    """The number of levels of a key that a nested mapping has."""
    depth = 0
    for name in key:
        if not isinstance(part, Mapping) or name not in part:
            break
        part, depth = part[name], depth + 1
    return depth


def _named(*parts: str, point: Sequence[tuple[str, Any]]) -> str:
    """Words and the values of a grid's point as one name."""
    texts = [
        (key, f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.-]+", "_", str(value)).strip("_"))
        for key, value in point
    ]
    return "-".join([*parts, *(f"{key.split('.')[-1]}={text}" for key, text in texts)])
