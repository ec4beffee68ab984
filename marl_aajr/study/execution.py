"""Ray Tune as the scheduler of a study: it places the nodes, starts failed ones again and keeps processes.

Tune knows no order between trials; its search algorithm, which it asks for the next trial, is where ours
comes in. Processes are used again for the next node: loading torch and RLlib takes longer than a run's start.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from marl_aajr.study.folder import Storage, StudyFolder
from marl_aajr.study.graph import Node, stranded
from marl_aajr.study.progress import GridProgress
from marl_aajr.study.study_config import StudyConfig
from marl_aajr.study.worker import StopFlag, StudyLocation, do_node
from marl_aajr.training.run_record import software

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run keeps its own record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets runs end an iteration
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "60",
}
"""Environment variables for Tune and its processes; set before Ray starts."""

PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
"""The variable for the number of trials that Tune lets wait for room at a time."""


def execute(
    nodes: Mapping[str, Node],
    folder: StudyFolder,
    progress: GridProgress,
    *,
    storage: Storage | None,
    study: StudyConfig,
    should_stop: Callable[[], bool],
) -> None:
    """Do all nodes that are not done, each after what it needs, as many at a time as there is room for.

    Nodes that are `finished` in `progress`, which is kept up to date, are not done again. Once `should_stop`,
    which is asked often, says yes, nothing is started, and what runs ends at its next iteration.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # With fewer than this, short nodes keep taking over the first process before a second one is up.
    os.environ[PENDING] = str(progress.slots)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = StopFlag.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    location = StudyLocation(str(folder.path), folder.identity, None if storage is None else storage.uri)
    trainable = tune.with_resources(
        tune.with_parameters(do_node, nodes=dict(nodes), location=location, flag=flag, expected=software()),
        lambda task: tune.PlacementGroupFactory(nodes[task["node"]].bundles),
    )
    keep_up = ProgressCallback(progress, folder, flag, should_stop)
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=GraphSearch(nodes, progress, should_stop),
            num_samples=len(nodes),
            max_concurrent_trials=study.max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["node"],
            trial_dirname_creator=lambda trial: trial.config["node"].replace("/", "--"),
        ),
        run_config=tune.RunConfig(
            name=f"grid-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
            storage_path=str(folder.tune) if storage is None else f"{storage.root}/tune",
            storage_filesystem=None if storage is None else storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=study.retries),
            callbacks=[keep_up, *loggers(study)],
            verbose=0,
        ),
    ).fit()
    ray.kill(flag)


class _Unsaved:
    """Tune pickles what it is given, to go on from; we go on from the study's folder instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class GraphSearch(_Unsaved, Searcher):
    """Proposes, as Tune's next trial, the first node whose needs are met; none once the study is to stop."""

    def __init__(
        self, nodes: Mapping[str, Node], progress: GridProgress, should_stop: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._nodes, self._progress, self._should_stop = nodes, progress, should_stop
        self._done = {name for name in nodes if progress.nodes[name].state == "finished"}
        self._waiting = [name for name in nodes if name not in self._done]
        self._running: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._waiting or self._should_stop():
            return Searcher.FINISHED
        for name in self._waiting:
            if self._done.issuperset(self._nodes[name].needs):
                self._waiting.remove(name)
                self._running[trial_id] = name
                # The settings are for the callbacks of others, which show a trial's configuration.
                return {"node": name, "run": self._nodes[name].run.config.model_dump(mode="json")}
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        name = self._running.pop(trial_id)
        outcome = "failed" if error else (result or {}).get("outcome")
        if outcome == "finished":
            self._done.add(name)
        elif outcome == "failed":
            lost = stranded(self._nodes, [name])
            for other in [waiting for waiting in self._waiting if waiting in lost]:
                self._waiting.remove(other)
                self._progress.ended(other, "impossible", error=f"{name} failed")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder says what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class ProgressCallback(_Unsaved, tune.Callback):
    """Keeps the study's progress up to date with what Tune sees, and hands on the wish to stop."""

    def __init__(
        self, progress: GridProgress, folder: StudyFolder, flag: Any, should_stop: Callable[[], bool]
    ) -> None:
        self._progress, self._folder, self._flag, self._should_stop = progress, folder, flag, should_stop
        self._asked = False

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._asked and self._should_stop():
            self._asked = True
            self._flag.ask.remote()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.started(trial.config["node"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._progress.advanced(trial.config["node"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, name = trial.last_result, trial.config["node"]
        why: dict[str, Any] = {"error": result.get("error", "")}
        if "traceback" in result:
            why["log"] = str(self._folder.add_log(name, result["traceback"]))
        outcome, seconds = result.get("outcome", "interrupted"), result.get("seconds")
        self._progress.ended(name, outcome, seconds=seconds, **why)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["node"]
        self._progress.restarted(name, **logged_error(trial, self._folder, name))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["node"]
        self._progress.ended(name, "failed", **logged_error(trial, self._folder, name))


def logged_error(trial: Any, folder: StudyFolder, name: str) -> dict[str, Any]:
    """The last `error` of one of Tune's trials in a line, and the `log` that has all of it."""
    path = trial.error_file
    text = Path(path).read_text(encoding="utf-8").strip() if path and Path(path).is_file() else ""
    text = text or "unknown error"  # A full disk leaves an empty file.
    return {"error": text.splitlines()[-1][:300], "log": str(folder.add_log(name, text))}


@contextmanager
def tune_environment() -> Iterator[None]:
    """Set within this block what Tune, and the processes of a Ray that is started in it, need for a study."""
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, PENDING)}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            os.environ.pop(name, None)
            if old is not None:
                os.environ[name] = old


def loggers(study: StudyConfig) -> list[tune.Callback]:
    """Tune's callbacks for what else the study logs to; each node of the study is a run there.

    MLflow goes to `MLFLOW_TRACKING_URI`, Weights & Biases to the account of `WANDB_API_KEY` or to a local
    folder with `WANDB_MODE=offline`. Their packages are imported only where they are asked for.
    """
    found: list[tune.Callback] = []
    if "mlflow" in study.log:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        class MLflow(MLflowLoggerCallback):
            """Ray's callback, to which a node that reports that it is not finished would be finished."""

            def log_trial_end(self, trial: Any, failed: bool = False) -> None:
                super().log_trial_end(trial, failed or trial.last_result.get("outcome") != "finished")

        found.append(MLflow(experiment_name=study.name))
    if "wandb" in study.log:
        from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

        class Run(_WandbLoggingActor):
            """Ray's process of one run, which would end it as a success, and may die before it is written."""

            def run(self) -> None:
                super().run()
                self._wandb.teardown()

            def _handle_result(self, result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
                if result.get("outcome", "finished") != "finished":
                    self._wandb.finish = partial(self._wandb.finish, exit_code=1)
                return super()._handle_result(result)

        class WeightsAndBiases(WandbLoggerCallback):
            """Ray's callback, which says nothing of failures."""

            _logger_actor_cls = Run

            def log_trial_end(self, trial: Any, failed: bool = False) -> None:
                if failed:
                    self.log_trial_result(0, trial, {"outcome": "failed"})
                super().log_trial_end(trial, failed)

            def _cleanup_logging_actor(self, trial: Any) -> None:
                with suppress(RayError):  # killed at once, it would not write what it has
                    ray.get(self._trial_logging_actors[trial].__ray_terminate__.remote(), timeout=60)
                super()._cleanup_logging_actor(trial)

        found.append(WeightsAndBiases(project=study.name))
    return found
