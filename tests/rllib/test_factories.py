"""Environments that are given as factories, of scripts and notebooks, are built in every process."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from mpe2 import simple_spread_v3
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rollout.environments import resolve
from tests.rllib.fast_runs import config, runner
from tests.rollout.toy_games import Scripted


@pytest.mark.usefixtures("ray_session")
def test_a_closure_travels_to_remote_runners() -> None:
    cycles = 5

    def make() -> Any:
        return simple_spread_v3.parallel_env(max_cycles=cycles)

    configured = config(copies=1, steps=20, minibatch_size=20).env_runners(num_env_runners=1)
    fast(configured, resolve(make))
    algorithm = configured.build_algo()
    try:
        result = algorithm.train()["env_runners"]
    finally:
        algorithm.stop()
    assert result[NUM_ENV_STEPS_SAMPLED] == 20
    assert result["episode_len_mean"] == cycles


def test_factories_of_one_name_are_registered_apart() -> None:
    names = {register(partial(simple_spread_v3.parallel_env, max_cycles=n)) for n in (5, 6)}
    assert len(names) == 2


def no_batch(num_envs: int, device: Any) -> Any:
    """A function of the right form that builds something else."""
    return simple_spread_v3.parallel_env()


@pytest.mark.parametrize(
    "factory", [simple_spread_v3.parallel_env, Scripted, lambda: None, lambda mode=None, size=2: None, 7]
)
def test_what_is_no_batch_factory_is_refused_before_anything_starts(factory: Any) -> None:
    with pytest.raises(ValueError, match=r"\(num_envs, device\) -> BatchedEnv, got .* as resolve\(factory\)"):
        fast(config(), factory)


def test_a_batch_factory_that_builds_something_else_is_told_so() -> None:
    with pytest.raises(ValueError, match="no_batch to build a BatchedEnv, got aec_to_parallel_wrapper"):
        runner(config(), no_batch)
