"""The metrics of a regularizer that takes every m-th minibatch; an update here has four."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr import AAJR, robustify
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update


def learner_of(interval: int) -> Any:
    regularizer = AAJR(coefficient=1.0, epsilon=0.2, sample_fraction=1.0, interval=interval)
    return build_learner(robustify(ppo_config("a"), regularizer))


def updates(learner: Any, count: int) -> list[dict[str, Any]]:
    batch = ppo_batch(learner)
    return [update(learner, batch)["a"]["aajr"] for _ in range(count)]


def numbers(metrics: dict[str, Any], *but: str) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name not in but}


def test_an_update_without_a_regularised_minibatch_repeats_what_the_last_one_said() -> None:
    first, second, third = updates(learner_of(10), 3)  # due are minibatches 0 and 10
    assert numbers(second, "seconds") == numbers(first, "seconds")
    assert float(first["seconds"]) > 0
    assert float(second["seconds"]) == 0, "nothing was done in it"
    assert float(third["penalty"]) != float(second["penalty"])


def test_a_restored_learner_repeats_it_too() -> None:
    straight, restored = learner_of(10), learner_of(10)
    updates(straight, 1)
    restored.set_state(straight.get_state())
    (one,), (other,) = updates(straight, 1), updates(restored, 1)
    assert numbers(one) == numbers(other)


def test_only_the_first_regularised_minibatch_is_measured_but_the_penalty_is_that_of_all() -> None:
    (alone,), (first_of_two,) = updates(learner_of(4), 1), updates(learner_of(2), 1)
    for name in ("gain_mean", "gain_max", "objective_gain"):
        assert float(alone[name]) == pytest.approx(float(first_of_two[name]), rel=1e-5), name
    assert float(alone["penalty"]) != pytest.approx(float(first_of_two["penalty"]), rel=1e-3)
