"""The settings of every method, found with the same effort: Optuna proposes, ASHA stops what lags behind.

What they decide depends on which trial ends first, so that it is written down: beside `asked.json` in
`tuning/METHOD`, which says what is searched and how, `decisions.json` has every trial's settings and
scores, and `replay` trains the same trials again, to the same scores, without asking either. Scores
rest on seeds and episodes that the evaluation does not use.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from marl_aajr.attacks import attack_class
from marl_aajr.report import Tuning
from marl_aajr.study.folder import DECISIONS, StudyFolder
from marl_aajr.study.progress import GridProgress, tuning_seconds
from marl_aajr.study.runs import Variant, merged, nested, variants
from marl_aajr.study.search import Trial, repeat, search
from marl_aajr.study.study_config import StudyConfig, TuningEntry
from marl_aajr.training.files import YamlSource, write_json

ASKED = "asked.json"
"""The file in `tuning/VARIANT` that says what is searched, and how."""


def check_tuning(study: StudyConfig, source: YamlSource) -> None:
    """Raise `ValueError` where the search differs between methods, or shares the evaluation's episodes."""
    entry = study.tune
    most = max(len(method.search) for method in study.methods)
    for m, method in enumerate(study.methods):
        if method.grid and method.search:
            times = prod(len(values) for values in method.grid.values())
            raise source.problem(
                ("methods", m, "grid"),
                "expected a grid or a search, got both: every point would be searched for, "
                f"{times} times the effort of a method without one; move the grid into search, as choices",
            )
        if method.search and entry is None:
            text = "expected a section tune that says how, got none; add it, or remove search"
            raise source.problem(("methods", m, "search"), text)
        count = len(method.search)
        if entry is not None and (count != most or not count):
            raise source.problem(
                ("methods", m),
                f"expected the same number of searched settings for every method, got {count} for "
                f"{method.name} and {most} for another; add some to search",
            )
    if entry is None:
        return
    if study.storage is not None:
        raise source.problem(
            ("tune",),
            "expected a folder that all nodes share, got storage; tune in one, and take what it finds over "
            "into a study without tune",
        )
    if shared := sorted(set(entry.seeds) & set(study.seeds)):
        text = f"expected seeds that the study does not use, got {shared}; choose others"
        raise source.problem(("tune", "seeds"), text)
    if entry.episode_seed == study.evaluation.seed:
        text = f"expected another seed than the evaluation's, got {entry.episode_seed}; choose another"
        raise source.problem(("tune", "episode_seed"), text)
    try:
        attack_class(entry.attack)
    except ValueError as error:
        raise source.problem(("tune", "attack"), str(error)) from None


def tune_study(
    study: StudyConfig, folder: StudyFolder, progress: GridProgress, *, should_stop: Callable[[], bool]
) -> None:
    """Search the settings of every variant for which that has not been done; see `TuningEntry`."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    every = list(variants(study))
    for number, variant in enumerate(every, start=1):
        if should_stop():
            return
        if folder.read_tuning(variant) is None:
            progress.doing = f"tuning {variant.name} ({number} of {len(every)})"
            progress.emit("tuning", variant.name)
            trial = _trial(study, variant, folder)
            trial.folder.mkdir(parents=True, exist_ok=True)
            write_json(folder.tuning / variant.name / ASKED, searched_by(study, folder, variant))
            trials = search(trial, variant, study, folder, progress, should_stop=should_stop)
            if trials is None:
                return
            _decide(trials, variant, folder)
            progress.tuning = tuning_seconds(study, folder)
            progress.emit("tuned", variant.name, chosen=folder.tuned(study)[variant.name])
    progress.doing = ""


def replay(study: StudyConfig, folder: StudyFolder, progress: GridProgress) -> None:
    """Train the recorded trials again, as far as they came; `ValueError` where a score is another one."""
    for variant in variants(study):
        decisions = folder.read_tuning(variant)
        if decisions is None:
            raise ValueError(f"expected decisions to replay in {folder.tuning / variant.name}, got none")
        progress.emit("replaying", variant.name)
        trial = _trial(study, variant, folder, within="replay")
        shutil.rmtree(trial.folder, ignore_errors=True)
        again = repeat(trial, decisions["trials"], study, folder)
        for number, (then, now) in enumerate(zip(decisions["trials"], again, strict=True)):
            if then["scores"] != now:
                raise ValueError(
                    f"expected trial {number} of {variant.name} to score {then['scores']} again, got {now}"
                )
        progress.emit("replayed", variant.name, trials=len(again))


def budgets(study: StudyConfig, folder: StudyFolder) -> list[Tuning]:
    """The effort that was spent on every method, for the report."""
    if study.tune is None:
        return []
    return [
        Tuning(
            method=variant.name.removeprefix(f"{variant.environment.title}-"),
            environment=variant.environment.title,
            trials=len(decisions["trials"]),
            env_steps=decisions["env_steps"],
            space={key: str(space) for key, space in variant.method.search.items()},
            chosen=decisions["chosen"],
            how=_how(study.tune, decisions["trials"]),
        )
        for variant in variants(study)
        if (decisions := folder.read_tuning(variant)) is not None
    ]


def _how(entry: TuningEntry, trials: Sequence[Mapping[str, Any]]) -> str:
    weight = entry.robust_weight
    failed = entry.trials - sum(bool(trial["scores"]) for trial in trials)
    how = (
        f"Optuna and ASHA, on {1 - weight:g} · clean return + {weight:g} · return under {entry.attack} at "
        f"ε {entry.epsilon:g}, seeds {', '.join(map(str, entry.seeds))}"
    )
    return f"{how}; {failed} of {entry.trials} trials failed" if failed else how


def _trial(study: StudyConfig, variant: Variant, folder: StudyFolder, *, within: str = "trials") -> Trial:
    assert study.tune is not None
    first = nested({key: values[0] for key, values in study.grid.items()})
    data = merged(*(part for _, part in variant.parts), first)
    return Trial(study.tune, data, folder.tuning / variant.name / within, variant.environment.team)


def _decide(trials: list[dict[str, Any]], variant: Variant, folder: StudyFolder) -> None:
    """Write down the trials, and the settings of the one that scored best of those that came furthest."""
    scored = [trial for trial in trials if trial["scores"]]
    if not scored:
        raise ValueError(
            f"expected a trial of {variant.name} that does not fail, got none; see {folder.log(variant.name)}"
        )
    best = max(scored, key=lambda trial: (len(trial["scores"]), trial["scores"][-1]["score"]))
    steps = sum(trial["scores"][-1]["env_steps"] for trial in scored)
    decisions = {"chosen": best["settings"], "env_steps": steps, "trials": trials}
    write_json(folder.tuning / variant.name / DECISIONS, decisions)


def searched_by(study: StudyConfig, folder: StudyFolder, variant: Variant) -> dict[str, Any]:
    """The settings that the decisions of a variant rest on, as JSON reads them back."""
    assert study.tune is not None
    asked = {
        "search": {key: space.model_dump(mode="json") for key, space in variant.method.search.items()},
        "tune": study.tune.model_dump(mode="json"),
        "run": _trial(study, variant, folder).data,
        "team": variant.environment.team,
    }
    return dict(json.loads(json.dumps(asked)))
