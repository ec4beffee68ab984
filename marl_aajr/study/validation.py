"""The checks of a study, made before anything is started.

First what is wrong with it by itself or on this cluster: a logger that is not installed, an environment that
cannot be played, unknown teams and agents, missing policies, too few processors. Then what has changed since
its folder was written, where nothing may change that something in the folder was made by. Each message names
the line of the study's file.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from marl_aajr.adversaries.store import ADVERSARIES
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.teams import choose_agents
from marl_aajr.study.folder import GROWING, StudyFolder, evaluated_by
from marl_aajr.study.graph import Node
from marl_aajr.study.runs import StudyRun, variants
from marl_aajr.study.study_config import StudyConfig
from marl_aajr.study.study_pool import Pool
from marl_aajr.study.tuning import ASKED, searched_by
from marl_aajr.training.algorithm import build_config, check_first_weights
from marl_aajr.training.cluster import KINDS, have_room, show
from marl_aajr.training.fields import differences
from marl_aajr.training.files import Key, YamlSource
from marl_aajr.training.resources import Resources
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import LOCK
from marl_aajr.victims import Victim

_OF_TEAMS = ("method.teams", "rollouts.teams")
_OURS = (LOCK, "identity", "events.jsonl", "runs", "evaluations", "tuning", "logs", "tune")


def check_loggers(study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError` where a package is missing that the study wants to log with."""
    for place, name in enumerate(study.log):
        if importlib.util.find_spec(name) is None:
            text = f"expected the package {name} to be installed; pip install {name}"
            raise source.problem(("log", place), text)


def check_playable(runs: tuple[StudyRun, ...], source: YamlSource) -> None:
    """Check that each run can be trained, once for runs that differ in the seed alone."""
    first = {(run.variant.name, repr(run.point)): run for run in reversed(runs)}
    problems: dict[str, None] = {}
    for run in reversed(first.values()):
        try:
            build_config(run.config)
            check_first_weights(run.config)
        except ValueError as error:
            field = str(error).partition(":")[0]
            where = run.where(field if field in _OF_TEAMS else "env", source)
            problems[f"{where}: {run.name}: {error}"] = None
        if not all(run.config.resources.bundles):
            problems[
                f"{run.where('resources', source)}: resources: expected some CPU or GPU for every env runner "
                "and learner, to be reserved for it, got none; raise cpus_per_env_runner or cpus_per_learner"
            ] = None
    if problems:
        raise ValueError("\n".join(problems))


def check_agents(study: StudyConfig, source: YamlSource) -> None:
    """Whether the named teams and agents play, and adversaries attack all agents that evaluations attack."""
    for e, environment in enumerate(study.environments):
        game = resolve(environment.name, environment.kwargs).make()
        teams = dict(game.teams)
        game.close()
        if environment.team is not None and environment.team not in teams.values():
            known = ", ".join(dict.fromkeys(teams.values()))
            text = f"expected one of {known}, got {environment.team!r}"
            raise source.problem(("environments", e, "team"), text)
        for a, adversary in enumerate(study.adversaries):
            given, key = adversary.agents or (), ("adversaries", a, "agents")
            if strangers := [agent for agent in given if agent not in teams]:
                known = f"{environment.title}, {', '.join(teams)}"
                raise source.problem(key, f"expected agents of {known}, got {', '.join(strangers)}")
            if adversary.kind in ("opponent", "best-response") and len(set(teams.values())) < 2:
                text = (
                    f"expected games of several teams for an adversary of kind {adversary.kind}, got "
                    f"{environment.title}, in which all are of one; remove it, or the environment"
                )
                raise source.problem(("adversaries", a), text)
            evaluated = choose_agents(teams, environment.team, None)
            if adversary.observes and given and set(evaluated) - set(given):
                raise source.problem(
                    key,
                    f"expected all who are lied to when the runs are evaluated, {', '.join(evaluated)}, got "
                    f"{', '.join(given)}; leave them out",
                )


def check_policies(runs: tuple[StudyRun, ...], source: YamlSource) -> None:
    """Raise `ValueError` where a policy is missing that runs begin with."""
    first = {run.config.initial_policy: run for run in reversed(runs)}
    for policy, run in first.items():
        try:
            _ = None if policy is None else Victim.load(policy)
        except ValueError as error:
            raise ValueError(f"{run.where('initial_policy', source)}: initial_policy: {error}") from None


def check_fits(runs: Iterable[StudyRun], nodes: list[dict[str, float]], source: YamlSource) -> None:
    """Raise `ValueError`, a line for each kind of run, where a run does not fit the cluster even alone."""
    problems: dict[Resources, str] = {}
    for run in runs:
        resources = run.config.resources
        if resources not in problems and not _fits(resources, nodes):
            problems[resources] = (
                f"{run.where('resources', source)}: resources: expected runs that fit the cluster, which has "
                f"{show(*nodes)} in {len(nodes)} part(s), got {run.name}, which needs "
                f"{show(*resources.bundles)} in {len(resources.bundles)} part(s); lower env_runners, "
                "learners or what each of them takes"
            )
    if problems:
        raise ValueError("\n".join(problems.values()))


def _fits(resources: Resources, nodes: list[dict[str, float]]) -> bool:
    """Whether there is a node for the process that trains, and room for the others beside it."""
    main = resources.bundles[0]
    for place, node in enumerate(nodes):
        rest = {kind: node[kind] - main.get(kind, 0.0) for kind in KINDS}
        others = [*nodes[:place], rest, *nodes[place + 1 :]]
        if min(rest.values()) >= 0 and have_room(*resources.groups, others):
            return True
    return False


def check_same(folder: StudyFolder, study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError` where the folder was made by another study; new runs may have been added to it."""
    there = {path.name for path in folder.path.glob("*")}
    if not folder.study_file.is_file():
        # A crash, or a storage that is just being fetched, leaves some of ours without it.
        if not folder.path.exists() or (folder.path.is_dir() and there <= set(_OURS)):
            return
        raise ValueError(f"expected a new folder, got {folder.path}, which is not a study; choose another")
    try:
        old = StudyConfig.model_validate(yaml.safe_load(folder.study_file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"expected a study in {folder.study_file}: {error}") from None
    evaluated = any(folder.evaluations.glob("*"))
    entries = {entry.name: entry for entry in study.adversaries}
    trained_otherwise = any(
        entries.get(entry.name, entry) != entry and any(folder.runs.glob(f"*/{ADVERSARIES}/{entry.name}"))
        for entry in old.adversaries
    )
    # What may not change once something has been made by it.
    for section, written in (
        ("evaluation", evaluated or _pool_trained_otherwise(folder, old, study)),
        ("adversaries", evaluated or trained_otherwise),
        ("tune", any(folder.tuning.glob("*"))),
    ):
        before, after = (each.model_dump(mode="json")[section] for each in (old, study))
        if written and before != after:
            key, change = first_change(section, before, after)
            raise changed(source.problem(key, change), folder.path)
    teams = {entry.title: entry.team for entry in old.environments}
    for e, environment in enumerate(study.environments):
        team = teams.get(environment.title, environment.team)
        if team != environment.team and any(folder.runs.glob(f"{environment.title}-*/{ADVERSARIES}/*")):
            change = f"{team} → {environment.team}"
            raise changed(source.problem(("environments", e, "team"), change), folder.path)


def _pool_trained_otherwise(folder: StudyFolder, old: StudyConfig, study: StudyConfig) -> bool:
    """Whether the folder has an opponent for the pool that would be trained with other settings now."""
    wanted = [(entry.seeds, entry.adversary) for entry in study.evaluation.opponents if entry.adversary]
    return any(
        now.name == then.adversary.name and now != then.adversary and any(folder.runs.glob(place))
        for then in old.evaluation.opponents
        if then.adversary is not None
        for seeds, now in wanted
        for place in (f"*-s{seed}/{ADVERSARIES}/{now.name}" for seed in set(seeds) & set(then.seeds))
    )


def check_runs(folder: StudyFolder, runs: Sequence[StudyRun], source: YamlSource) -> None:
    """Raise `ValueError` where a run in the folder has other settings, or the study has it no longer."""
    names = {run.name for run in runs}
    for path in sorted(folder.runs.glob("*")):
        if RunDirectory(path).is_run and path.name not in names:
            raise changed(f"{source.path}: the run {path.name} is no longer part of it", folder.path)
    for run in runs:
        directory = folder.run(run.name)
        if directory.is_run and (changes := differences(directory.config(), run.config)):
            where = source.where(run.variant.key)
            raise changed(f"{where}: {run.name}: {'; '.join(changes)}", folder.path)


def check_pool(folder: StudyFolder, runs: Sequence[StudyRun], pool: Pool, source: YamlSource) -> None:
    """Raise `ValueError` where a run is played in another environment than its pool, or trained the pool."""
    where = source.where(("evaluation", "opponents"))
    for run in runs:
        title = run.variant.environment.title
        for member in pool.get(title, ()):
            if member.victim is not None and folder.path in member.victim.resolve().parents:
                raise ValueError(
                    f"{where}: expected opponents from outside this study, got {member.victim}, which it "
                    "trained; say method and seeds for one that is trained for the pool"
                )
            if member.run is not None and member.run.config.env != run.config.env:
                raise ValueError(
                    f"{where}: expected all runs on {title} in one environment, as all meet one pool, got "
                    f"{run.config.env} for {run.name} and {member.run.config.env} for {member.name}; make "
                    "them two environments"
                )


def check_evaluations(folder: StudyFolder, nodes: Iterable[Node], source: YamlSource) -> None:
    """Raise `ValueError` where a found evaluation is not the study's, but for what is `GROWING`."""
    for node in nodes:
        then = folder.was_evaluated_by(node.run) if node.kind == "evaluate" else None
        if then is not None:
            now = evaluated_by(node)
            before = then | {name: now[name] for name in GROWING if name in now}
            if before != now:
                key, change = first_change("evaluation", before, now)
                where = node.run.where("env.team", source) if "team" in key else source.where(key)
                raise changed(f"{where}: {'.'.join(map(str, key))}: {change}", folder.path)


def check_searches(folder: StudyFolder, study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError` where a search had another space or effort, or trials of other runs, than now."""
    for variant in variants(study) if study.tune is not None else ():
        now = searched_by(study, folder, variant)
        then = folder.read_tuning(variant, ASKED) or now
        if then != now:
            (_, *key), change = first_change(variant.name, then, now)
            where = source.where((*variant.key, *key))
            raise changed(f"{where}: {variant.name}: {'.'.join(map(str, key))}: {change}", folder.path)


def changed(what: object, folder: Path) -> ValueError:
    """The refusal of a study that is another than the one in a folder."""
    return ValueError(
        f"{what}; expected the study that wrote {folder}; change it back, or name another folder by --out, "
        "and another storage if there is one"
    )


def first_change(name: str, before: Any, after: Any, key: Key = ()) -> tuple[Key, str]:
    """The innermost place where two values differ, and how."""
    key = (*key, name)
    if isinstance(before, dict) and isinstance(after, dict):
        for part in dict.fromkeys([*before, *after]):
            if before.get(part) != after.get(part):
                return first_change(part, before.get(part), after.get(part), key)
    return key, f"{json.dumps(before)} → {json.dumps(after)}"
