"""Environments that are given as factories, of scripts and notebooks, are built in every process."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from mpe2 import simple_spread_v3

from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.fast import fast
from tests.rllib.fast_runs import config, runner
from tests.rollout.toy_games import Scripted


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
