"""The commands that make the page again, and the configurations that they need."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import yaml

from marl_aajr.adversaries.store import ADVERSARIES, RECORD
from marl_aajr.certificates.certificate import Certificate
from marl_aajr.core.checks import grouped
from marl_aajr.evaluation.budget import Budget
from marl_aajr.evaluation.outcomes import AttackOutcome
from marl_aajr.evaluation.protocol import builtin_suites
from marl_aajr.evaluation.replacements import CONTROLS
from marl_aajr.evaluation.result import Evaluation
from marl_aajr.evaluation.threats import curves
from marl_aajr.evaluation.variations import parse_variation
from marl_aajr.report import proven
from marl_aajr.report.comparison import Comparison
from marl_aajr.report.methods import EvaluatedRun
from marl_aajr.report.run_results import RunResults
from marl_aajr.rollout.disturbances import Disturbance, parse_disturbance
from marl_aajr.rollout.teams import SAID


def commands(comparisons: Sequence[Comparison]) -> str:
    """Shell commands: train every run and its adversaries anew into `again/`, evaluate, write the page."""
    shown = [run for comparison in comparisons for run in comparison.runs]
    runs = {str(results.run.path): results.run for results in shown}
    targets = _targets(runs)
    evaluations, adversaries = _evaluations(shown, targets)
    lines = ["# train: each run directory holds its resolved configuration, seed included"]
    for path, run in runs.items():
        if run.trained_here:
            config = str(run.path / "config.yaml")
            lines.append(shlex.join(["marl-aajr", "train", "--config", config, "--out", targets[path]]))
    if adversaries:
        lines += ["", "# adversaries: each against its run", *adversaries]
    lines += ["", "# evaluate: the same episodes and attacks for every run"]
    together = grouped((tuple(each), targets[path]) for path, each in evaluations.items())
    for how, whose in together.items():
        lines += [f"for run in {shlex.join(whose)}; do", *(f"  {command}" for command in how), "done"]
    lines += ["", "# this page", shlex.join(["marl-aajr", "compare", *targets.values()])]
    return "\n".join(lines)


def configurations(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Label and YAML of each method, as its first run had it; the other runs change the seed."""
    found: dict[tuple[str, str], None] = {}
    for comparison in comparisons:
        where = f" on {comparison.task.short}" if len(comparisons) > 1 else ""
        for method in (row.method for row in comparison.rows):
            seeds = ", ".join(str(run.seed) for run in method.runs)
            name = f"{method.label}{where}: {'seed' if len(method.runs) == 1 else 'seeds'} {seeds}"
            found[name, yaml.safe_dump(dict(method.runs[0].config), sort_keys=False)] = None
    return list(found)


def attacks(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Name and settings of each attack, exactly."""
    specs = (condition.spec for comparison in comparisons for condition in comparison.conditions)
    return list(dict.fromkeys((spec.name, spec.described) for spec in specs))


def arguments(evaluation: Evaluation, renamed: Mapping[str, str]) -> list[list[str]]:
    """The options of `marl-aajr evaluate RUN` that repeat this evaluation, a list for each command it takes.

    It takes one, but for attacks named by hand at different sizes. `renamed` says where the runs of
    surrogates and adversaries are trained again.
    """
    common = ["--episodes", str(evaluation.episodes)]
    common += ["--selection-episodes", str(evaluation.selection_episodes), "--seed", str(evaluation.seed)]
    common += ["--units", evaluation.units]
    common += ["--team", evaluation.team] if len(set(evaluation.teams.values())) > 1 else []
    common += _each("--actions", [result.actions for result in evaluation.results])
    budget = evaluation.budget
    common += ["--budget", str(budget)] if budget != Budget() else []
    if set(evaluation.agents) != set(evaluation.members) and budget.named is None:
        common += _each("--agents", evaluation.agents)
    common += ["--weakest-link"] if evaluation.weakest_link else []
    common += _each("--vary", _varied(evaluation))
    common += _each("--disturb", _disturbed(evaluation, renamed))
    common += ["--norm", evaluation.norm] if evaluation.norm != "linf" else []
    common += _each("--channel", evaluation.channels)
    common += ["--smoothing", str(evaluation.smoothing)] if evaluation.smoothing else []
    surrogates = (row.attack.source for row in evaluation.attacks if row.attack.access == "surrogate")
    common += _each("--surrogate", [_known(name, renamed) for name in dict.fromkeys(surrogates)])
    controls = [row for row in evaluation.adversarial_agents if row.kind in CONTROLS]
    common += _each("--replace", [f"{row.kind}:{','.join(row.agents)}" for row in controls])
    common += _each("--adversary", [_known(name, renamed) for name in _adversaries_of(evaluation)])
    others = [rows.opponent for rows in evaluation.results[0].opponents]
    partners = (row.source for row in evaluation.adversarial_agents if row.kind == "partner")
    common += _each("--opponent", [_known(name, renamed) for name in others])
    common += _each("--partner", [_known(name, renamed) for name in dict.fromkeys(partners)])
    first, *more = _attacks(evaluation) or [[]]
    return [[*common, *how] for how in ([*first, *_unranked(evaluation)], *more)]


def _known(name: str, renamed: Mapping[str, str]) -> str:
    """The place where a run of a name is trained again; the name itself where the page does not show it.

    A part that it plays stays behind it: `again/run:prey`.
    """
    for path, to in renamed.items():
        for known in (path, PurePath(path).name):
            if name == known or name.startswith(f"{known}:"):
                return to + name.removeprefix(known)
    return name


def _targets(runs: Mapping[str, EvaluatedRun]) -> dict[str, str]:
    """Path of each run -> where it is trained again; runs of one name are told apart by a number.

    A policy from elsewhere stays where it is.
    """
    names = [run.path.resolve().name for run in runs.values()]
    targets = {}
    for i, (name, (path, run)) in enumerate(zip(names, runs.items(), strict=True)):
        again = str(PurePath("again", f"{i}-{name}" if names.count(name) > 1 else name))
        targets[path] = again if run.trained_here else path
    return targets


def _evaluations(
    shown: Sequence[RunResults], targets: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Path of each run -> the commands of its evaluations; and those that train the adversaries in them."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    trained: dict[str, None] = {}
    for results in shown:
        path = str(results.run.path)
        records = sorted((results.run.path / ADVERSARIES).glob(f"*/{RECORD}"))
        # Each is trained again beside the run's new folder.
        kept = {str(r.parent): str(PurePath(targets[path]) / ADVERSARIES / r.parent.name) for r in records}
        for _, evaluation in results.played:
            elsewhere = _environment(evaluation, results.run)
            for words in arguments(evaluation, {**targets, **kept}):
                found[path][f'marl-aajr evaluate "$run" {shlex.join([*elsewhere, *words])}'] = None
            for folder, target in kept.items():
                if {folder, PurePath(folder).name} & set(_adversaries_of(evaluation)):
                    trained[_train_adversary(Path(folder), targets[path], target)] = None
        for certificate in results.run.certificates.values():
            words = [*_environment(certificate, results.run), *proven.arguments(certificate)]
            found[path][f'marl-aajr certify "$run" {shlex.join(words)}'] = None
    return {path: list(commands) for path, commands in found.items()}, list(trained)


def _environment(evaluation: Evaluation | Certificate, run: EvaluatedRun) -> list[str]:
    """The options for what was played, as far as it is not the run's own; of a policy from elsewhere, all."""
    said = evaluation.env.kwargs
    if run.trained_here:
        own = run.config["env"].get("kwargs") or {}
        said = {name: said[name] for name in SAID if name in said and said[name] != own.get(name)}
    keys = {name: name if name in SAID else f"env.kwargs.{name}" for name in said}
    given = _each("--set", [f"{keys[name]}={json.dumps(value)}" for name, value in said.items()])
    return given if run.trained_here else ["--env", evaluation.env.name, *given]


def _attacks(evaluation: Evaluation) -> list[list[str]]:
    """The suite with its sizes, and the attacks that were named beside it or instead of it.

    Attacks that share their sizes share a command.
    """
    known = builtin_suites().get(evaluation.suite)
    of_suite = () if known is None else tuple(entry.attack for entry in known.attacks)
    named = grouped((r.attack.name, r.epsilon) for r in evaluation.attacks if not _was_trained_before(r))
    sizes = {name: dict.fromkeys(epsilons) for name, epsilons in named.items()}
    if evaluation.suite:
        every = dict.fromkeys(epsilon for of in sizes.values() for epsilon in of)
        beside = [name for name in sizes if known is not None and name not in of_suite]
        return [["--suite", evaluation.suite, *_each("--attack", beside), *_sizes(every)]]
    together = grouped((tuple(epsilons), name) for name, epsilons in sizes.items())
    return [[*_each("--attack", names), *_sizes(epsilons)] for epsilons, names in together.items()]


def _varied(evaluation: Evaluation) -> list[str]:
    """The arguments that were varied, but for those of a suite."""
    known = builtin_suites().get(evaluation.suite)
    of_suite = {parse_variation(text).argument for text in known.vary} if known else set()
    return [
        f"kwargs.{curve.argument}={','.join(json.dumps(value) for value in curve.values)}"
        for curve in curves(evaluation.results[0].threats)
        if curve.argument not in of_suite
    ]


def _disturbed(evaluation: Evaluation, renamed: Mapping[str, str]) -> list[str]:
    """The disturbances of actions, but for those of a suite; random forms are played beside others anyway."""
    known = builtin_suites().get(evaluation.suite)
    of_suite = {replace(parse_disturbance(text), agents=None) for text in known.disturb} if known else set()
    found = []
    for row in (row for row in evaluation.results[0].threats if row.kind == "actions"):
        (size,) = row.settings.values()
        by = row.source and _known(row.source, renamed)
        one = Disturbance(kind=row.name, size=size, by=by)  # type: ignore[arg-type]
        if one not in of_suite:
            found.append(str(one if row.agents == evaluation.agents else replace(one, agents=row.agents)))
    return found


def _unranked(evaluation: Evaluation) -> list[str]:
    """The faults, words and channels that were named beside a suite or instead of it, with their settings."""
    known = builtin_suites().get(evaluation.suite)
    if evaluation.suite and known is None:
        return []
    of_suite = {entry.name for entry in known.attacks} if known else set()
    found = []
    for row in (row for row in evaluation.results[0].threats if row.name not in of_suite):
        if row.kind in ("channel", "message"):
            found.append(json.dumps({"attack": row.name, **row.settings}))
        elif (row.kind, row.form) == ("fault", "worst"):
            found.append(json.dumps({"attack": row.name, **row.settings, "draws": row.draws}))
    return _each("--attack", found)


def _sizes(epsilons: Mapping[float, None] | Sequence[float]) -> list[str]:
    return _each("--epsilon", [f"{epsilon:.12g}" for epsilon in epsilons])


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _adversaries_of(evaluation: Evaluation) -> tuple[str, ...]:
    """Names or paths of the trained adversaries that played, each once."""
    attacked = (row.attack.source for row in evaluation.attacks if _was_trained_before(row))
    replaced = (row.source for row in evaluation.adversarial_agents if row.trained)
    return tuple(dict.fromkeys([*attacked, *replaced]))


def _was_trained_before(row: AttackOutcome) -> bool:
    """Whether an attack is an adversary that was there already, not one that the evaluation trained."""
    return row.attack.access == "learned" and row.attack.source != ""


def _train_adversary(folder: Path, victims: str, target: str) -> str:
    """The command that trains the adversary of a folder again, against these victims, into a target."""
    asked = json.loads((folder / RECORD).read_text("utf-8"))
    words = ["marl-aajr", "adversary", "train", victims, "--kind", str(asked["kind"])]
    for name in ("epsilon", "alpha", "env_steps", "search", "seeds", "seed"):
        if asked.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", f"{asked[name]:.12g}"]
    if asked.get("epsilon") is not None:
        words += ["--norm", asked["norm"], "--units", asked["units"]]
        words += ["--warm-start" if asked["warm_start"] else "--no-warm-start"]
    words += _each("--agents", asked.get("agents") or ())
    words += _each("--channel", asked.get("threat", {}).get("channels") or ())
    words += [f"--{name}" for name in ("joint", "mixed") if asked.get(name)]
    return shlex.join([*words, "--out", target])
