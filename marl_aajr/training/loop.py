"""From one point of a run's progress to its end: iterations, what is written after each, checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.metrics import FAULT_TOLERANCE_STATS, NUM_ENV_STEPS_SAMPLED

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.rllib.internals.algorithms import dead_learners, errors_raise, remote_errors_raise
from marl_aajr.rllib.language_module import send_first_weights
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.atla_phases import ATLAPhase, ATLAPhases, begin_phase, phases_of
from marl_aajr.training.checkpoint import (
    RunProgress,
    restore_checkpoint,
    save_checkpoint,
    seed_everything,
    start_afresh,
)
from marl_aajr.training.cluster import check_nodes_match
from marl_aajr.training.config import RunConfig
from marl_aajr.training.export import export_victim, start_from
from marl_aajr.training.files import append_line, full_disk_named
from marl_aajr.training.metrics import Curves, to_record
from marl_aajr.training.policy_mapping import PolicyMapping, policy_mapping_of
from marl_aajr.training.run_directory import Event, RunDirectory
from marl_aajr.training.run_record import State, Status
from marl_aajr.training.team_methods import team_methods
from marl_aajr.victims import Victim

OnIteration = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], bool]

_RESTART_SECONDS = 120.0
"""The time that a run waits for env runners once all of them are lost."""


@contextmanager
def native_warning_hidden() -> Iterator[None]:
    """Within this block, a warning of Ray's C++ side about RLlib's env runners does not reach stderr.

    RLlib passes them their configuration through the object store and keeps it there, so that the warning
    (ray issue 53727) is needless; it comes past Python's logging. Everything else is passed on.
    """
    needless = b"has constructor arguments in the object store and max_restarts > 0"
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            os.write(2, b"".join(line for line in file if needless not in line))


class ProcessesLostError(RuntimeError):
    """A learner of a run, or all of its env runners, are gone; the message says what to do."""


@dataclass
class Training:
    """The loop of one run, from one point of progress to its end or to an interruption."""

    config: RunConfig
    directory: RunDirectory
    on_iteration: OnIteration | None
    should_stop: ShouldStop | None
    progress: RunProgress = field(default=RunProgress(), init=False)

    def __post_init__(self) -> None:
        self.mapping: PolicyMapping = policy_mapping_of(self.config)
        self.atla: ATLAPhases | None = phases_of(team_methods(self.config, self.mapping).atla, self.mapping)

    def run(self, progress: RunProgress) -> None:
        self.progress = progress
        self._seen: Mapping[Event, int] = {}
        algorithm: Algorithm | None = None
        threads = torch.get_num_threads()
        curves = self._rewind()
        try:
            with errors_raise(), full_disk_named(self.directory.path):
                self._clock = time.perf_counter() - progress.seconds
                with native_warning_hidden():
                    algorithm = build_config(self.directory.resumed(self.config)).build_algo()
                remote_errors_raise(algorithm)
                if progress.iteration > 0:
                    folder = self.directory.checkpoint(progress.iteration)
                    restore_checkpoint(algorithm, folder)
                else:
                    self._begin(algorithm)
                self._loop(algorithm, curves)
        except KeyboardInterrupt:
            self._write_status("interrupted")
            raise
        except BaseException as error:
            with suppress(OSError):  # There may be no room for it.
                self._write_status("failed", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            with suppress(OSError):
                curves.close()
            torch.set_num_threads(threads)
            if algorithm is not None:
                algorithm.stop()

    def _begin(self, algorithm: Algorithm) -> None:
        language = self.config.model.language
        if language is not None and language.folder is not None:
            send_first_weights(algorithm)
        if self.config.initial_policy is not None:
            start_from(algorithm, Victim.load(self.directory.initial_policy))

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
            append_line(self.directory.metrics_file, record)
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
        threads = config.resources.torch_threads
        seed_everything(algorithm, seed=config.seed, iteration=before.iteration, threads=threads)
        phase: ATLAPhase | None = None
        if self.atla is not None:
            phase = self.atla.phase(iteration=before.iteration, env_steps=before.env_steps)
        started = time.perf_counter()
        try:
            result = train_once(algorithm, phase)
        except NonFiniteError as error:
            raise NonFiniteError(f"iteration {before.iteration + 1}: {error}") from error
        except Exception as error:
            if dead := dead_learners(algorithm):
                raise ProcessesLostError(
                    f"iteration {before.iteration + 1}: lost {len(dead)} of "
                    f"{config.resources.learners} learners ({dead[0]}); resume the run, or let it do so "
                    "itself (max_failures)"
                ) from error
            raise
        self._note_losses(result)
        steps = int(result["env_runners"][NUM_ENV_STEPS_SAMPLED])
        now = time.perf_counter()
        after = replace(
            before,
            iteration=before.iteration + 1,
            env_steps=before.env_steps + steps,
            seconds=now - self._clock,
            adversary_env_steps=before.adversary_env_steps
            + (steps if phase and phase.trains_adversaries else 0),
        )
        trained = phase.trained if phase else self.mapping
        record = to_record(
            result,
            after,
            modules={module: trained.teams[agent] for module, agent in trained.modules.items()},
            teams=set(self.mapping.teams.values()),
            steps_per_second=steps / (now - started),
            with_kl=config.ppo.kl_coeff > 0,
        )
        if phase is not None:
            epsilon = phase.perturbations.epsilon if phase.perturbations else 0.0
            record["atla"] = {"epsilon": epsilon, "adversary_env_steps": after.adversary_env_steps}
        self.progress = after
        return record

    def _note_losses(self, result: dict[str, Any]) -> None:
        seen: dict[Event, int] = {
            "env_runners_lost": self.config.resources.env_runners
            - result[FAULT_TOLERANCE_STATS]["num_healthy_workers"],
            "env_runners_restarted": result[FAULT_TOLERANCE_STATS]["num_remote_worker_restarts"],
        }
        for event, count in seen.items():
            if (more := count - self._seen.get(event, 0)) > 0:
                self.directory.append_event(event, iteration=self.progress.iteration + 1, count=more)
                if event == "env_runners_restarted":  # perhaps on a node that has joined
                    check_nodes_match(all_answer=False)
        self._seen = seen

    def _checkpoint(self, algorithm: Algorithm) -> None:
        iteration = self.progress.iteration
        save_checkpoint(algorithm, self.progress, self.directory.checkpoint(iteration))
        self.directory.prune_checkpoints()
        start_afresh(algorithm, seed=self.config.seed, iteration=iteration)

    def _finish(self, algorithm: Algorithm, state: State) -> None:
        export_victim(algorithm, self.config, self.mapping, self.directory.victim)
        if self.atla is not None:
            export_victim(algorithm, self.config, self.atla.adversaries, self.directory.adversary)
        self._write_status(state)

    def _write_status(self, state: State, *, error: str | None = None) -> None:
        self.directory.write_status(Status(state, self.progress.iteration, self.progress.env_steps, error))


def train_once(algorithm: Algorithm, phase: ATLAPhase | None) -> dict[str, Any]:
    """One iteration, repeated where all env runners were lost, until they are back."""
    deadline = math.inf
    while time.monotonic() < deadline:
        if phase is not None:
            begin_phase(algorithm, phase)
        result: dict[str, Any] = {}
        try:
            result = algorithm.train()
        except ValueError:
            # Without env runners IMPALA and APPO turn to the main process, which has no environments.
            if (
                algorithm.config.num_env_runners == 0
                or algorithm.env_runner_group.num_healthy_remote_workers()
            ):
                raise
            algorithm.restore_env_runners(algorithm.env_runner_group)
        if result.get("env_runners", {}).get(NUM_ENV_STEPS_SAMPLED, 0) > 0:  # NaN, where none was left.
            return result
        deadline = min(deadline, time.monotonic() + _RESTART_SECONDS)
        time.sleep(1.0)
    raise ProcessesLostError(
        f"no env runner has come back for {_RESTART_SECONDS:.0f} s; look for the reason in Ray's logs "
        "(/tmp/ray/session_latest/logs) and resume the run"
    )
