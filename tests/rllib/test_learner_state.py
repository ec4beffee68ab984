"""What a learner with a regularizer keeps: random numbers, schedules, and what its state carries."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from ray import cloudpickle

from marl_aajr import AAJR, robustify
from tests.rllib.learners import build_learner, ppo_batch, ppo_config, update, weights
from tests.rllib.test_robustify import ACTIVE, same


def test_the_dual_variable_moves_and_travels_in_the_state() -> None:
    regularizer = AAJR(coefficient=0.1, form="constraint", gain_bound=1e-3)
    learner = build_learner(robustify(ppo_config("a"), regularizer))
    batch = ppo_batch(learner)
    before = learner.get_state()["marl_aajr"]["modules"]["a"]
    update(learner, batch)
    state = pickle.loads(cloudpickle.dumps(learner.get_state()))
    after = state["marl_aajr"]["modules"]["a"]
    assert before.keys() == after.keys() != set()
    assert any(not torch.equal(before[key], after[key]) for key in before)

    restored = build_learner(robustify(ppo_config("a"), regularizer), seed=7)
    restored.set_state(state)
    for one in (learner, restored):
        update(one, batch)
    assert same(weights(learner), weights(restored))


def test_same_seed_same_weights_and_another_seed_others() -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        learner = build_learner(robustify(ppo_config("a", seed=seed), ACTIVE))
        update(learner, ppo_batch(learner))
        return weights(learner)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_no_global_random_number_is_drawn() -> None:
    learner = build_learner(robustify(ppo_config("a"), ACTIVE))
    batch = ppo_batch(learner)
    update(learner, batch)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learner.update(batch=batch, timesteps={}, num_epochs=1, minibatch_size=32)
    assert torch.equal(before, torch.get_rng_state())


def test_schedules_follow_the_environment_steps() -> None:
    schedule: Any = [[0, 0.0], [1000, 0.0], [2000, 0.1]]
    learner = build_learner(robustify(ppo_config("a"), AAJR(coefficient=schedule, interval=1)))
    batch = ppo_batch(learner)
    assert "aajr" not in update(learner, batch, timestep=1000)["a"]
    assert "aajr" in update(learner, batch, timestep=1001)["a"]


def test_a_restored_learner_continues_to_the_same_weights() -> None:
    config = robustify(ppo_config("a"), ACTIVE)
    straight = build_learner(config)
    batch = ppo_batch(straight)
    update(straight, batch)
    state = pickle.loads(cloudpickle.dumps(straight.get_state()))
    update(straight, batch)

    restored = build_learner(config, seed=7)
    restored.set_state(state)
    update(restored, batch)
    assert same(weights(straight), weights(restored))

    fresh_noise = build_learner(config, seed=7)
    del state["marl_aajr"]
    fresh_noise.set_state(state)
    update(fresh_noise, batch)
    assert not same(weights(straight), weights(fresh_noise))


def test_weight_synchronisation_carries_no_regularizer_state() -> None:
    learner = build_learner(robustify(ppo_config("a"), ACTIVE))
    assert "marl_aajr" not in learner.get_state(components=["rl_module"])
    assert "marl_aajr" in learner.get_state(not_components=["rl_module"])
