"""Where the random numbers of a run come from: (seed, iteration, process), and nothing else.

RLlib's checkpoints hold no generators and no environments. Instead of saving them, every iteration seeds all
generators anew, and every checkpoint is a point where environments are built anew, in the run that goes on
as in the run that is resumed. A resumed run is therefore the run that was never stopped.
"""

from __future__ import annotations

import random
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.learner.learner import Learner

from marl_aajr.rllib.internals import learner_index
from marl_aajr.rllib.sampling.env_runners import RunEnvRunner


class Stream(IntEnum):
    """What a seed is for."""

    RUNNER = 0
    LEARNER = 1
    ENVIRONMENT = 2


def derive(seed: int, iteration: int, stream: Stream, index: int) -> int:
    """A seed in [0, 2³¹), independent for every combination."""
    words = np.random.SeedSequence([seed, iteration, stream, index]).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF


def seed_everything(algorithm: Algorithm, *, seed: int, iteration: int, threads: int) -> None:
    """Seed the generators of all processes for the iteration that follows `iteration`.

    Args:
        algorithm: whose processes.
        seed: the run's.
        iteration: how many are done.
        threads: of torch in each process.
    """
    # The local runner and a local learner share the generators of this process.
    seed_process(derive(seed, iteration, Stream.RUNNER, 0), threads)
    algorithm.env_runner_group.foreach_env_runner(
        partial(_seed_runner, seed=seed, iteration=iteration, threads=threads), local_env_runner=False
    )
    if algorithm.config.num_learners > 0:
        algorithm.learner_group.foreach_learner(
            partial(_seed_learner, seed=seed, iteration=iteration, threads=threads)
        )


def start_afresh(algorithm: Algorithm, *, seed: int, iteration: int) -> None:
    """Build the environments of all runners anew, with seeds for what follows `iteration`."""
    algorithm.env_runner_group.foreach_env_runner(
        partial(_start_runner, seed=seed, iteration=iteration),
        local_env_runner=algorithm.config.num_env_runners == 0,
    )


class StartRecreated:
    """RLlib's `on_env_runners_recreated`: seeds for runners that Ray has restarted.

    RLlib gives them the seeds of their first start, and so the same episodes after every restart.
    """

    def __init__(self, *, seed: int, threads: int) -> None:
        self.seed = seed
        self.threads = threads

    def __call__(self, *, algorithm: Algorithm, env_runner_indices: list[int], **_: Any) -> None:
        point = {"seed": self.seed, "iteration": algorithm.training_iteration}
        for function in (
            partial(_start_runner, **point),
            partial(_seed_runner, **point, threads=self.threads),
        ):
            algorithm.env_runner_group.foreach_env_runner(
                function, local_env_runner=False, remote_worker_ids=env_runner_indices
            )


def seed_process(seed: int, threads: int) -> None:
    """Seed Python, NumPy and torch here, and set torch's threads."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - environments and RLlib draw from the global generators
    torch.manual_seed(seed)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _seed_runner(runner: RunEnvRunner, *, seed: int, iteration: int, threads: int) -> None:
    seed_process(derive(seed, iteration, Stream.RUNNER, runner.worker_index), threads)


def _seed_learner(learner: Learner, *, seed: int, iteration: int, threads: int) -> None:
    seed_process(derive(seed, iteration, Stream.LEARNER, learner_index(learner)), threads)


def _start_runner(runner: Any, *, seed: int, iteration: int) -> None:
    runner.start_afresh(seed=derive(seed, iteration, Stream.ENVIRONMENT, runner.worker_index))
