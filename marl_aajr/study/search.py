"""Ray Tune's part of the tuning: Optuna's proposals, ASHA's stops, both restored after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from marl_aajr.study.config import StudyConfig
from marl_aajr.study.entries import Space, TuningEntry
from marl_aajr.study.execution import error_of
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.runs import Variant
from marl_aajr.study.trials import Trial, try_settings
from marl_aajr.study.watch import Board
from marl_aajr.training.capacity import bundles


def search(
    trial: Trial,
    variant: Variant,
    study: StudyConfig,
    folder: StudyFolder,
    board: Board,
    *,
    should_stop: Callable[[], bool],
) -> list[dict[str, Any]] | None:
    """All trials of a variant: name, settings and scores; None if the search was stopped before its end.

    What a search that was stopped has decided is restored from Tune's own record.
    """
    path = folder.tune / f"tuning-{variant.name}"
    space = variant.method.search
    trainable = _trainable(trial, {key: each.example for key, each in space.items()})
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_optuna(space, trial.entry),
                scheduler=_asha(trial.entry),
                num_samples=trial.entry.trials,
                max_concurrent_trials=study.max_concurrent,
                reuse_actors=True,
            ),
            run_config=_run_config(path, study, [_Watch(variant.name)]),
        )
    _SESSIONS[variant.name] = _Session(board, folder, should_stop)
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
        _trainable(trial, trials[0]["settings"]),
        param_space={"point": tune.grid_search(points)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=study.max_concurrent),
        run_config=_run_config(folder.tune / f"replay-{trial.folder.parent.name}", study, []),
    ).fit()
    return [trial.scores(point["name"]) for point in points]


def _try(task: Mapping[str, Any], *, trial: Trial) -> None:
    """What Tune runs in a process of its own."""
    torch.set_num_threads(1)
    name = tune.get_context().get_trial_id()
    point = task.get("point", {"settings": dict(task), "rungs": None, "name": name})
    for scores in try_settings(trial, **point):
        tune.report(scores)


def _trainable(trial: Trial, example: Mapping[str, Any]) -> Any:
    resources = trial.config(example, trial.entry.seeds[0]).resources
    return tune.with_resources(
        tune.with_parameters(_try, trial=trial), tune.PlacementGroupFactory(bundles(resources))
    )


def _optuna(space: Mapping[str, Space], entry: TuningEntry) -> OptunaSearch:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(each) for key, each in space.items()}
    sampler = optuna.samplers.TPESampler(seed=entry.seed)
    return OptunaSearch(distributions, metric="score", mode="max", sampler=sampler)


def _distribution(space: Space) -> optuna.distributions.BaseDistribution:
    if space.choices is not None:
        return optuna.distributions.CategoricalDistribution(space.choices)
    assert space.low is not None
    assert space.high is not None
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)


def _asha(entry: TuningEntry) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr="budget",
        metric="score",
        mode="max",
        max_t=entry.reduction ** (entry.rungs - 1),
        grace_period=1,
        reduction_factor=entry.reduction,
    )


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


@dataclass(frozen=True)
class _Session:
    board: Board
    folder: StudyFolder
    should_stop: Callable[[], bool]


_SESSIONS: dict[str, _Session] = {}
"""What the callbacks of this process talk to: Tune pickles a callback, and these cannot be pickled."""


class _Watch(tune.Callback):
    """Tells every score and every failure, and leaves the loop when the study is to stop."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if _SESSIONS[self._name].should_stop():
            raise _Stopped

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        scores = {key: result[key] for key in ("budget", "clean", "robust", "score") if key in result}
        _SESSIONS[self._name].board.tell("trial", self._name, trial=trial.trial_id, **scores)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        session, text = _SESSIONS[self._name], error_of(trial)
        log = session.folder.add_log(self._name, text)
        what = {"trial": trial.trial_id, "error": text.splitlines()[-1][:300], "log": str(log)}
        session.board.tell("trial_failed", self._name, **what)
