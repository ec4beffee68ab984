"""Checkpoints and resuming: why a run that is resumed has the numbers of one that was never stopped.

1. `resumable`, for `train(..., resume=True)`, finds the last complete checkpoint and refuses another
   configuration.
2. `loop.Training.run` drops the metrics that were written after it, and restores the algorithm from it.
3. RLlib's part of a checkpoint holds no random generators and no environments. Instead of saving them, every
   iteration seeds all generators anew (`seed_everything`), by the run's seed, the iteration and the process
   alone; and at every checkpoint all environments are built anew (`start_afresh`), in the run that goes on as
   in the run that is resumed.

A checkpoint is complete or absent, and checked before it is trusted. RLlib's part leaves out what a run needs
to go on as if nothing had happened; `trainer.json` has that: how many iterations and steps are done.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.env_runner import EnvRunner

from marl_aajr.rllib.internals.cores import own_cores
from marl_aajr.rllib.internals.learners import learner_index
from marl_aajr.training.config import RunConfig
from marl_aajr.training.fields import differences
from marl_aajr.training.files import new_folder, write_json
from marl_aajr.training.run_directory import Event, RunDirectory

_ALGORITHM, _TRAINER, _MANIFEST = "algorithm", "trainer.json", "manifest.json"


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run, with the wall time that it took over all resumes.

    `adversary_env_steps` are those of the environment steps that trained adversaries (ATLA).
    """

    iteration: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    adversary_env_steps: int = 0


def resumable(directory: RunDirectory, config: RunConfig) -> RunProgress:
    """The progress from which a run goes on: that of its last complete checkpoint, or `ValueError`."""
    status = directory.status()
    differing = differences(directory.config(), config)
    # No number depends on the address.
    if changed := [line for line in differing if not line.startswith("resources.address:")]:
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
    return check_checkpoint(directory.checkpoint(iterations[-1])) if iterations else RunProgress()


def record_event(directory: RunDirectory, event: Event, progress: RunProgress, **details: Any) -> None:
    """Write down that a run goes on from a checkpoint."""
    repeated = directory.status().iteration - progress.iteration
    known = {key: value for key, value in details.items() if value is not None}
    directory.append_event(event, iteration=progress.iteration, repeated=repeated, **known)


def save_checkpoint(algorithm: Algorithm, progress: RunProgress, folder: Path) -> None:
    """Write a checkpoint that appears under its name when it is complete."""
    with new_folder(folder) as fresh:
        algorithm.save_to_path(str((fresh / _ALGORITHM).absolute()))
        write_json(fresh / _TRAINER, asdict(progress))
        write_json(fresh / _MANIFEST, _checksums(fresh))


def check_checkpoint(folder: Path) -> RunProgress:
    """The progress that a checkpoint holds; `ValueError` where a file in it is missing or has changed."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        damaged = sorted(expected.items() ^ _checksums(folder).items())
        if damaged:
            raise ValueError(f"{damaged[0][0]} is missing or has changed")
        return RunProgress(**json.loads((folder / _TRAINER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the checkpoint {folder} is damaged ({error}); delete it to resume from the checkpoint before "
            "it, or overwrite the run"
        ) from None


def restore_checkpoint(algorithm: Algorithm, folder: Path) -> None:
    """Put a new algorithm into the state of a checkpoint that `check_checkpoint` has passed."""
    algorithm.restore_from_path(str((folder / _ALGORITHM).absolute()))


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / _MANIFEST)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


_RUNNER, _LEARNER, _ENVIRONMENT = range(3)
"""The uses of a seed."""


def _derive(seed: int, iteration: int, stream: int, index: int) -> int:
    """A seed in [0, 2³¹), independent for every combination."""
    words = np.random.SeedSequence([seed, iteration, stream, index]).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF


def seed_everything(
    algorithm: Algorithm, *, seed: int, iteration: int, threads: int | Literal["auto"]
) -> None:
    """Seed the generators of all processes for what follows `iteration`, and set torch's threads."""
    seed_it = partial(_seed_process, seed=seed, iteration=iteration, threads=threads)
    # The local runner and a local learner share the generators of this process.
    algorithm.env_runner_group.foreach_env_runner(seed_it)
    if algorithm.config.num_learners > 0:
        algorithm.learner_group.foreach_learner(seed_it)


def start_afresh(algorithm: Algorithm, *, seed: int, iteration: int) -> None:
    """Build the environments of all runners anew, with seeds for what follows `iteration`."""
    algorithm.env_runner_group.foreach_env_runner(
        partial(_start_runner, seed=seed, iteration=iteration),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )


@dataclass(frozen=True)
class StartRecreated:
    """RLlib's `on_env_runners_recreated`: seeds for runners that Ray has restarted.

    RLlib gives them the seeds of their first start, and so the same episodes after every restart.
    """

    seed: int
    threads: int | Literal["auto"]

    def __call__(self, *, algorithm: Algorithm, env_runner_indices: list[int], **_: Any) -> None:
        point = {"seed": self.seed, "iteration": algorithm.training_iteration}
        for function in (
            partial(_start_runner, **point),
            partial(_seed_process, **point, threads=self.threads),
        ):
            algorithm.env_runner_group.foreach_env_runner(
                function, local_env_runner=False, remote_worker_ids=env_runner_indices
            )


def _seed_process(
    part: EnvRunner | Learner, *, seed: int, iteration: int, threads: int | Literal["auto"]
) -> None:
    if isinstance(part, Learner):
        derived = _derive(seed, iteration, _LEARNER, learner_index(part))
    else:
        derived = _derive(seed, iteration, _RUNNER, part.worker_index)
    random.seed(derived)
    np.random.seed(derived)  # noqa: NPY002 - environments and RLlib draw from the global generators
    torch.manual_seed(derived)
    count = own_cores() if threads == "auto" else threads
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _start_runner(runner: Any, *, seed: int, iteration: int) -> None:
    runner.start_afresh(seed=_derive(seed, iteration, _ENVIRONMENT, runner.worker_index))
