"""One run: train until the environment steps are used up, and leave a run directory.

A run can be stopped at any moment, by Ctrl-C or by ``kill -9``, and resumed from its last checkpoint; the
numbers that follow are those of a run that was never stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from marl_aajr.numerics import NonFiniteError
from marl_aajr.rllib.internals import errors_raise, remote_errors_raise
from marl_aajr.training.algorithm import Roster, build_algorithm, build_config, roster_of
from marl_aajr.training.checkpoint import Progress, check_checkpoint, restore_checkpoint, save_checkpoint
from marl_aajr.training.cluster import native_warning_hidden, ray_for
from marl_aajr.training.config import RunConfig
from marl_aajr.training.differences import differences
from marl_aajr.training.export import export_victim
from marl_aajr.training.metrics import Curves, to_record
from marl_aajr.training.randomness import seed_everything, start_afresh
from marl_aajr.training.run_directory import RunDirectory, State, Status

OnIteration = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], bool]

_RESTART_SECONDS = 120.0
"""How long a run waits for env runners when all of them are lost."""

_FREE_TO_CHANGE = ("resources.address",)
"""Settings that may differ in a resumed run, because no number depends on them."""


def train(
    config: RunConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_iteration: OnIteration | None = None,
    should_stop: ShouldStop | None = None,
) -> Path:
    """Train one run and write its directory.

    Args:
        config: the run.
        out: its directory; must not exist, or be empty, unless ``overwrite`` or ``resume``.
        overwrite: replace the run that is there. Nothing but a run is ever replaced.
        resume: go on from the last checkpoint of the run that is there; ``config`` must be the same.
        on_iteration: called with each line of ``metrics.jsonl``.
        should_stop: asked after each iteration. If it says yes, the victim as it is then is written, the run
            is marked ``interrupted``, and what came after the last checkpoint is trained again, to the same
            numbers, when it is resumed.

    Returns:
        The run directory.

    Raises:
        ValueError: a configuration that cannot be trained, a directory that is not free or cannot be
            resumed, a Ray cluster that does not answer or is too small. Nothing has been written.
        NonFiniteError: a NaN or an infinity; the run is marked ``failed`` and keeps its checkpoints.
    """
    directory = RunDirectory(out)
    build_config(config)
    progress = Progress()
    try:
        if resume:
            directory.require()
            directory.lock()
            progress = _resumable(directory, config)
        else:
            directory.check_free(overwrite=overwrite)
        with ray_for(config.resources):
            if not resume:
                directory.create(config, overwrite=overwrite)
            _Training(config, directory, on_iteration, should_stop).run(progress)
    finally:
        directory.unlock()
    return directory.path


def _resumable(directory: RunDirectory, config: RunConfig) -> Progress:
    """Where a run goes on.

    Raises:
        ValueError: no run, a finished one, another configuration, or a damaged checkpoint.
    """
    status = directory.status()
    changed = [
        line
        for line in differences(directory.config(), config)
        if line.partition(":")[0] not in _FREE_TO_CHANGE
    ]
    if changed:
        raise ValueError(
            f"expected the configuration that {directory.path} was started with, got other settings "
            f"({'; '.join(changed)}); change them back, or start a new run"
        )
    if status.state == "finished":
        raise ValueError(
            f"expected a run that is not finished, got {directory.path}, which finished after "
            f"{status.env_steps} environment steps; evaluate it, or start a new run"
        )
    iterations = directory.iterations()
    return check_checkpoint(directory.checkpoint(iterations[-1])) if iterations else Progress()


class _Training:
    """The loop of one run, from one point of progress to its end or to an interruption."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        on_iteration: OnIteration | None,
        should_stop: ShouldStop | None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.on_iteration = on_iteration
        self.should_stop = should_stop
        self.roster: Roster = roster_of(config)
        self.progress = Progress()

    def run(self, progress: Progress) -> None:
        self.progress = progress
        algorithm: Algorithm | None = None
        threads = torch.get_num_threads()
        curves = self._rewind()
        try:
            with errors_raise():
                self._clock = time.perf_counter() - progress.seconds
                with native_warning_hidden():
                    algorithm = build_algorithm(self.config)
                remote_errors_raise(algorithm)
                if progress.iteration > 0:
                    folder = self.directory.checkpoint(progress.iteration)
                    restore_checkpoint(algorithm, folder)
                self._loop(algorithm, curves)
        except KeyboardInterrupt:
            self._write_status("interrupted")
            raise
        except BaseException as error:
            self._write_status("failed", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            curves.close()
            torch.set_num_threads(threads)
            if algorithm is not None:
                algorithm.stop()

    def _rewind(self) -> Curves:
        """Drop what an earlier process wrote after the point where this one starts."""
        self._write_status("running")
        self.directory.truncate_metrics(self.progress.iteration)
        shutil.rmtree(self.directory.tensorboard, ignore_errors=True)
        curves = Curves(self.directory.tensorboard)
        for record in self.directory.metrics():
            curves.add(record)
        return curves

    def _loop(self, algorithm: Algorithm, curves: Curves) -> None:
        start_afresh(algorithm, seed=self.config.seed, iteration=self.progress.iteration)
        while self.progress.env_steps < self.config.env_steps:
            record = self._iterate(algorithm)
            self.directory.append_metrics(record)
            curves.add(record)
            self._write_status("running")
            done = self.progress.env_steps >= self.config.env_steps
            if done or self.progress.iteration % self.config.checkpoint_every == 0:
                self._checkpoint(algorithm)
            if self.on_iteration is not None:
                self.on_iteration(record)
            if not done and self.should_stop is not None and self.should_stop():
                self._finish(algorithm, "interrupted")
                return
        self._finish(algorithm, "finished")

    def _iterate(self, algorithm: Algorithm) -> dict[str, Any]:
        config, before = self.config, self.progress
        seed_everything(
            algorithm,
            seed=config.seed,
            iteration=before.iteration,
            threads=config.resources.torch_threads,
        )
        started = time.perf_counter()
        try:
            result = _train_once(algorithm)
        except NonFiniteError as error:
            raise NonFiniteError(f"iteration {before.iteration + 1}: {error}") from error
        steps = int(result["env_runners"][NUM_ENV_STEPS_SAMPLED])
        now = time.perf_counter()
        after = replace(
            before,
            iteration=before.iteration + 1,
            env_steps=before.env_steps + steps,
            seconds=now - self._clock,
        )
        record = to_record(
            result,
            after,
            modules=self.roster.modules,
            steps_per_second=steps / (now - started),
            with_kl=config.ppo.kl_coeff > 0,
        )
        self.progress = after
        return record

    def _checkpoint(self, algorithm: Algorithm) -> None:
        iteration = self.progress.iteration
        save_checkpoint(algorithm, self.progress, self.directory.checkpoint(iteration))
        self.directory.prune_checkpoints()
        start_afresh(algorithm, seed=self.config.seed, iteration=iteration)

    def _finish(self, algorithm: Algorithm, state: State) -> None:
        export_victim(algorithm, self.config, self.roster, self.directory.victim)
        self._write_status(state)

    def _write_status(self, state: State, *, error: str | None = None) -> None:
        self.directory.write_status(Status(state, self.progress.iteration, self.progress.env_steps, error))


def _train_once(algorithm: Algorithm) -> dict[str, Any]:
    """One iteration; where all env runners were lost in it, it is repeated when they are back.

    Raises:
        RuntimeError: they do not come back.
    """
    deadline = time.monotonic() + _RESTART_SECONDS
    while time.monotonic() < deadline:
        result: dict[str, Any] = algorithm.train()
        if result.get("env_runners", {}).get(NUM_ENV_STEPS_SAMPLED):
            return result
        time.sleep(1.0)
    raise RuntimeError(
        f"no env runner has come back for {_RESTART_SECONDS:.0f} s; look for the reason in Ray's logs "
        "(/tmp/ray/session_latest/logs) and resume the run"
    )
