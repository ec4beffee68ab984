"""One search for a variant's settings on Ray Tune: Optuna's proposals, ASHA's stops, and what a trial does.

A trial trains to a rung, is scored, and goes on if it may. What was trained and scored before an
interruption is restored, not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from marl_aajr.evaluation import evaluate
from marl_aajr.study.execution import logged_error
from marl_aajr.study.folder import StudyFolder, run_exists
from marl_aajr.study.progress import GridProgress, trial_seconds
from marl_aajr.study.runs import Settings, Variant, merged, nested
from marl_aajr.study.study_config import Space, StudyConfig, TuningEntry
from marl_aajr.study.worker import StudyLocation
from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.files import append_line, read_lines
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import software
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim

_SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Trial:
    """The common part of all trials of a variant; `data` lacks the settings that are searched."""

    entry: TuningEntry
    data: Mapping[str, Any]
    folder: Path
    team: str | None

    def config(self, settings: Settings, seed: int) -> RunConfig:
        """The run of a trial: checkpoints lie where it is scored, so that going on repeats nothing."""
        entry = self.entry
        config = make_config(merged(self.data, nested(settings), {"seed": seed}))
        last: int = entry.reduction ** (entry.rungs - 1)
        first = math.ceil(entry.env_steps / config.ppo.train_batch_size / last)
        steps = {"env_steps": first * last * config.ppo.train_batch_size, "checkpoint_every": first}
        return make_config(merged(config.model_dump(mode="json"), steps))

    def scores(self, name: str) -> list[dict[str, Any]]:
        """Those of one trial, rung by rung."""
        return read_lines(self.folder / name / _SCORES)


def try_settings(
    trial: Trial, *, settings: Settings, name: str, rungs: int | None = None
) -> Iterator[dict[str, Any]]:
    """Scores of a trial, rung by rung, None: all; what has been scored before is not trained again.

    Yields:
        `budget` (1, η, η², …), `env_steps`, `clean`, `robust` and `score`, means over the seeds.
    """
    entry = trial.entry
    known = trial.scores(name)
    yield from known[:rungs]
    for rung in range(len(known), entry.rungs if rungs is None else rungs):
        budget = entry.reduction**rung
        scores, steps = [], 0
        for seed in entry.seeds:
            config = trial.config(settings, seed)
            directory = RunDirectory(trial.folder / name / f"s{seed}")
            _train_until(directory, config, config.checkpoint_every * budget)
            scores.append(_score(directory, trial))
            steps += directory.status().env_steps
        found = {key: fmean(score[key] for score in scores) for key in ("clean", "robust", "score")}
        line = {"budget": budget, "env_steps": steps, **found}
        append_line(trial.folder / name / _SCORES, line)
        yield line


def _train_until(directory: RunDirectory, config: RunConfig, iteration: int) -> None:
    """Train to an iteration, which has a checkpoint and leaves a victim."""
    there = run_exists(directory)
    if there and directory.status().state != "running" and directory.status().iteration == iteration:
        return

    def reached() -> bool:
        return directory.status().iteration >= iteration

    train(config, directory.path, resume=there, should_stop=reached)


def _score(directory: RunDirectory, trial: Trial) -> dict[str, float]:
    """Clean return, return under attack, and their weighted mean, on the tuning's own episodes."""
    entry = trial.entry
    evaluation = evaluate(
        Victim.load(directory.victim),
        attacks=[(entry.attack, entry.epsilon)],
        episodes=entry.episodes,
        units="raw",
        seed=entry.episode_seed,
        team=trial.team,
        workers=1,
    )
    clean, robust = evaluation.clean_return, evaluation.attacks[0].mean
    weight = entry.robust_weight
    return {"clean": clean, "robust": robust, "score": (1 - weight) * clean + weight * robust}


def search(
    trial: Trial,
    variant: Variant,
    study: StudyConfig,
    folder: StudyFolder,
    progress: GridProgress,
    *,
    should_stop: Callable[[], bool],
) -> list[dict[str, Any]] | None:
    """All trials of a variant: name, settings and scores; None if the search was stopped before its end.

    What a search that was stopped has decided is restored from Tune's own record.
    """
    path, space = folder.tune / f"tuning-{variant.name}", variant.method.search
    trainable = _trainable(trial, {key: each.example for key, each in space.items()}, folder)
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_optuna(space, trial.entry),
                scheduler=ASHAScheduler(
                    time_attr="budget",
                    metric="score",
                    mode="max",
                    max_t=trial.entry.reduction ** (trial.entry.rungs - 1),
                    grace_period=1,
                    reduction_factor=trial.entry.reduction,
                ),
                num_samples=trial.entry.trials,
                max_concurrent_trials=study.max_concurrent,
                reuse_actors=True,
            ),
            run_config=_run_config(path, study, [_SearchCallback()]),
        )
    _SearchCallback.name, _SearchCallback.folder = variant.name, folder
    _SearchCallback.seconds = trial_seconds(trial.entry)
    _SearchCallback.progress, _SearchCallback.should_stop = progress, should_stop
    try:
        results = tuner.fit()
    except _Stopped:
        return None
    return [
        {"name": name, "settings": result.config, "scores": trial.scores(name)}
        for result in results
        if (name := (result.metrics or {}).get("trial_id")) is not None
    ]


def repeat(
    trial: Trial, trials: Sequence[Mapping[str, Any]], study: StudyConfig, folder: StudyFolder
) -> list[list[dict[str, Any]]]:
    """Scores of recorded trials, trained again as far as they came, without Optuna and ASHA."""
    points = [
        {"settings": dict(each["settings"]), "rungs": len(each["scores"]), "name": each["name"]}
        for each in trials
    ]
    tune.Tuner(
        _trainable(trial, trials[0]["settings"], folder),
        param_space={"point": tune.grid_search(points)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=study.max_concurrent),
        run_config=_run_config(folder.tune / f"replay-{trial.folder.parent.name}", study, []),
    ).fit()
    return [trial.scores(point["name"]) for point in points]


def try_once(
    task: Mapping[str, Any], *, trial: Trial, location: StudyLocation, expected: Mapping[str, str]
) -> None:
    """One trial, which Tune runs in a process of its own."""
    location.check_machine(expected)
    torch.set_num_threads(1)
    name = tune.get_context().get_trial_id()
    point = task.get("point", {"settings": dict(task), "rungs": None, "name": name})
    for scores in try_settings(trial, **point):
        tune.report(scores)


def _trainable(trial: Trial, example: Mapping[str, Any], folder: StudyFolder) -> Any:
    resources = trial.config(example, trial.entry.seeds[0]).resources
    location = StudyLocation(str(folder.path), folder.identity)
    return tune.with_resources(
        tune.with_parameters(try_once, trial=trial, location=location, expected=software()),
        tune.PlacementGroupFactory(resources.bundles),
    )


def _optuna(space: Mapping[str, Space], entry: TuningEntry) -> OptunaSearch:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    of = optuna.distributions
    distributions = {
        key: of.FloatDistribution(each.low, each.high, log=each.log)
        if each.choices is None
        else of.CategoricalDistribution(each.choices)
        for key, each in space.items()
    }
    sampler = optuna.samplers.TPESampler(seed=entry.seed)
    return OptunaSearch(distributions, metric="score", mode="max", sampler=sampler)


def _run_config(path: Path, study: StudyConfig, callbacks: list[tune.Callback]) -> tune.RunConfig:
    return tune.RunConfig(
        name=path.name,
        storage_path=str(path.parent),
        failure_config=tune.FailureConfig(max_failures=study.retries),
        callbacks=callbacks,
        verbose=0,
    )


class _Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Leave Tune's loop; its state on the disk is what the next session goes on from."""


class _SearchCallback(tune.Callback):
    """Emits every score and every failure, and leaves the loop when the study is to stop.

    What it needs stands on the class, for one search at a time: Tune pickles and restores its instances.
    """

    name: ClassVar[str]
    folder: ClassVar[StudyFolder]
    progress: ClassVar[GridProgress]
    seconds: ClassVar[float]
    should_stop: ClassVar[Callable[[], bool]]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if _SearchCallback.should_stop():
            raise _Stopped

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        scores = {key: result[key] for key in ("budget", "clean", "robust", "score") if key in result}
        self.progress.emit("trial", self.name, trial=trial.trial_id, **scores)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.tuning -= self.seconds

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.tuning -= self.seconds
        why = logged_error(trial, self.folder, self.name)
        self.progress.emit("trial_failed", self.name, trial=trial.trial_id, **why)
