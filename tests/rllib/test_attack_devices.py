"""Rollouts under attack where the modules are: on the processor and on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from marl_aajr import AAJR, robustify
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.fast_runs import OURS, config, fragment, runner
from tests.rllib.recorder import Recorder, chunks, runner_of, size
from tests.rllib.test_attacked_episodes import several
from tests.rllib.test_attacked_rollouts import moved, part_of

EPSILON = 0.1
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])


def attack(objective: str) -> RolloutAttack:
    """With all that is drawn: radii, steps, starts, and the rows that are measured."""
    drawn: dict[str, Any] = {"epsilon_draw": (0.5, 1.0), "attacked_steps": (4, 5), "gap_interval": 1}
    return RolloutAttack(epsilon=EPSILON, objective=objective, worst_agents=2, **drawn)


@DEVICES
@pytest.mark.parametrize("objective", ["margin", "kl"])
def test_rllibs_own_runners_are_attacked_on_any_device(objective: str, device: str) -> None:
    # Runner 0 is on the processor, whatever it is given.
    settings = {"num_gpus_per_env_runner": int(device == "cuda"), "rollout_fragment_length": 2}
    configured = robustify(several().env_runners(**settings), AAJR(), rollouts=attack(objective))
    found = []
    for _ in range(2):
        subject = runner_of(configured, index=1)
        assert next(subject.module["team"].parameters()).device.type == device
        recorder = Recorder(subject)
        parts = chunks(subject, num_timesteps=24)
        sizes = np.concatenate([size(one, recorder) for one in parts])
        assert sizes.max() <= EPSILON + 1e-5
        assert sizes[sizes > 0].min() >= 0.45 * EPSILON
        assert subject.metrics.peek(("marl_aajr", "attack", "strong_gain")) > 0
        found.append(np.concatenate([one.get_observations() for one in parts]))
    assert np.array_equal(found[0], found[1])


@DEVICES
@pytest.mark.parametrize("objective", ["margin", "kl"])
def test_fast_runners_are_attacked_on_any_device(objective: str, device: str) -> None:
    subject = runner(config(), OURS, rollouts=attack(objective), device=device)
    part = part_of(fragment(subject))
    assert part.obs.device.type == device
    sizes = moved(part)
    assert sizes.max() <= EPSILON + 1e-5
    assert sizes[sizes > 0].min() >= 0.45 * EPSILON
    assert subject._collector.attack_metrics["strong_gain"] > 0  # type: ignore[union-attr]
