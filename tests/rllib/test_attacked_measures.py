"""What is measured of an attack on RLlib's episodes: which decisions, and in which step of a sample."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from marl_aajr import robustify
from marl_aajr.rllib.plugin import attacked_measures
from marl_aajr.rllib.plugin.attacked_measures import AttackedMeasures
from marl_aajr.rollout.attack.attacked_metrics import sums_of
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.recorder import chunks, runner_of
from tests.rllib.test_attacked_episodes import several, single
from tests.rllib.test_worst_agents import two_modules

ATTACK = RolloutAttack(gap_interval=1, steps=1)


def fake(length: int = 25) -> Any:
    """An env runner that RLlib asks for so many steps."""
    return SimpleNamespace(
        metrics=SimpleNamespace(log_dict=lambda *_, **__: None),
        config=SimpleNamespace(get_rollout_fragment_length=lambda _: length),
        worker_index=1,
        num_env_steps_sampled_lifetime=0,
    )


def measured_steps(
    measures: AttackedMeasures, *, samples: int, length: int, seed: int = 0
) -> list[list[int]]:
    """The steps of each sample in which a module is measured."""
    runner = fake()
    found: list[list[int]] = []
    for sample in range(samples):
        runner.num_env_steps_sampled_lifetime = sample
        found.append([])
        for step in range(length):
            measures.step(runner, 0.1, acts=True, draw=Random(f"{seed} {sample} {step}"))
            if measures._is_due("module"):
                found[-1].append(step)
    return found


def test_the_step_is_drawn_from_all_of_a_sample() -> None:
    steps = measured_steps(AttackedMeasures(ATTACK), samples=500, length=10)
    assert {len(found) for found in steps[1:]} == {1}, "the length of the first is a guess"
    counts = np.bincount([step for (step,) in steps[1:]], minlength=10)
    assert len(counts) == 10
    assert counts.min() > 25
    assert steps == measured_steps(AttackedMeasures(ATTACK), samples=500, length=10)
    assert steps != measured_steps(AttackedMeasures(ATTACK), samples=500, length=10, seed=1)


@pytest.mark.parametrize("interval", [0, 3])
def test_every_so_many_samples_are_measured(interval: int) -> None:
    measures = AttackedMeasures(RolloutAttack(gap_interval=interval))
    found = [len(steps) for steps in measured_steps(measures, samples=9, length=30)]
    assert found == ([1, 0, 0] * 3 if interval else [0] * 9)


def sampled(config: AlgorithmConfig, monkeypatch: Any, **request: Any) -> tuple[list[Any], list[int], int]:
    """The chunks of a sample, the rows of each measurement of the inner loop, and all rows that counted."""
    gaps: list[int] = []
    rows = 0

    def noted(attack: Any, decisions: Any, inputs: Any, generator: Any) -> Any:
        nonlocal rows
        sums = sums_of(attack, decisions, inputs, generator)
        rows += int(sums["rows"])
        gaps.extend([int(sums["gap_rows"])] if generator is not None else [])
        return sums

    monkeypatch.setattr(attacked_measures, "sums_of", noted)
    config.env_runners(rollout_fragment_length=10)
    return chunks(runner_of(config), **request), gaps, rows


@pytest.mark.parametrize(("configure", "actors"), [(single, 2), (several, 6)])
def test_what_nobody_acts_on_is_no_decision(configure: Any, actors: int, monkeypatch: Any) -> None:
    """Rows are the actions, over ends of episodes, and at most what each will act on in the next sample."""
    config = robustify(configure(), None, rollouts=ATTACK)
    parts, gaps, rows = sampled(config, monkeypatch, num_timesteps=120)
    assert sum(one.is_done for one in parts) > actors
    assert 0 <= rows - sum(map(len, parts)) <= actors
    assert len(gaps) == 1


def test_measuring_changes_nothing_of_play(monkeypatch: Any) -> None:
    seen = []
    for interval in (0, 1):
        attack = RolloutAttack(objective="kl", gap_interval=interval)
        config = robustify(two_modules(), None, rollouts=attack)
        parts, gaps, _ = sampled(config, monkeypatch, num_timesteps=20)
        assert len(gaps) == 2 * interval
        seen.append([one.get_observations() for one in parts])
    assert all(np.array_equal(one, other) for one, other in zip(*seen, strict=True))
