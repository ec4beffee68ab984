"""The plug-in for RLlib's old API stack, on real policies of it."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.impala.impala_torch_policy import ImpalaTorchPolicy
from ray.rllib.algorithms.ppo.ppo_torch_policy import PPOTorchPolicy
from ray.rllib.models.preprocessors import get_preprocessor
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY

from marl_aajr import AAJR, robustify, robustify_policy
from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib.old_stack import open_features
from tests.regularizers.samples import ANY_POLICY
from tests.rllib.learners import ppo_config
from tests.rllib.old_policies import (
    ACTIVE,
    CONVOLUTION,
    IMAGE,
    LSTM,
    MASKED,
    MODELS,
    OBS,
    SMALL,
    batch_of,
    learn,
    old_stack,
    on_old_stack,
    outputs_of,
    policy_of,
    same,
    weights,
)

SERVED = pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"model": LSTM},
        {"obs": MASKED, "model": {**SMALL, "custom_model": "masked"}},
        {"obs": IMAGE, "model": CONVOLUTION},
        {"actions": gym.spaces.MultiDiscrete([2, 2])},
        {"actions": gym.spaces.Box(-1, 1, (2,), np.float32)},
    ],
    ids=["mlp", "lstm", "mask", "convolution", "multi-discrete", "gaussian"],
)


@SERVED
def test_without_coefficients_it_is_rllibs_policy_bit_for_bit(kwargs: dict[str, Any]) -> None:
    off = replace(ACTIVE, coefficient=0.0, adversarial_weight=0.0)
    plain, zero, on = (policy_of(regularizer, **kwargs) for regularizer in (None, off, ACTIVE))
    batch = outputs_of(plain, batch_of(plain))
    stats = [learn(policy, batch) for policy in (plain, zero, on)]
    assert same(plain, zero)
    assert stats[0].keys() == stats[1].keys()
    # And the same comparison fails where the penalty is on.
    assert not same(plain, on)
    assert stats[2]["aajr/penalty"] > 0
    assert stats[2]["aajr/nonfinite"] == 0
    assert all(math.isfinite(value) for name, value in stats[2].items() if name.startswith("aajr/"))


@SERVED
def test_the_adapter_computes_what_the_model_does(kwargs: dict[str, Any]) -> None:
    policy: Any = policy_of(ACTIVE, **kwargs)
    policy.load_batch_into_buffer(outputs_of(policy, batch_of(policy)))
    (batch,) = policy._loaded_batches[0]
    outputs, _ = policy.model(batch)
    sample = policy.sample(policy.model, batch, policy._regularized.distribution)
    torch.testing.assert_close(sample.outputs.flatten(0, -2), outputs)
    assert sample.values is not None
    torch.testing.assert_close(sample.values(sample.obs).flatten(), policy.model.value_function())
    few = torch.tensor([2, 0])
    torch.testing.assert_close(sample.select(few).policy(sample.obs[few]), sample.outputs[few])
    twice = sample.policy.repeat(2)(torch.cat([sample.obs, sample.obs]))
    torch.testing.assert_close(twice, torch.cat([sample.outputs, sample.outputs]))


def test_what_may_be_perturbed_of_a_nested_observation() -> None:
    space = get_preprocessor(MASKED)(MASKED).observation_space
    # action_mask (3), observation (4), phase (2, one-hot)
    assert open_features(space, None).tolist() == [3, 4, 5, 6]
    pair = gym.spaces.Tuple((gym.spaces.Discrete(2), OBS, OBS))
    flat = get_preprocessor(pair)(pair).observation_space
    assert open_features(flat, None).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert open_features(flat, ("2",)).tolist() == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="expected leaves out of observation, got 'phase'"):
        open_features(space, ("phase",))


def test_padding_never_counts() -> None:
    """Rows behind the end of a sequence may hold anything."""
    found = []
    for fill in (0.0, 7.0):
        policy: Any = policy_of(ACTIVE, model=LSTM)
        policy.load_batch_into_buffer(batch_of(policy))
        (batch,) = policy._loaded_batches[0]
        batch[SampleBatch.OBS].reshape(-1, 5, 4)[1::2, 3:] = fill
        gradients, _ = policy.compute_gradients(batch)
        found.append(gradients)
    changed = [one is not None and abs(one - other).max() > 1e-7 for one, other in zip(*found, strict=True)]
    assert not any(changed)


def test_the_model_is_left_as_the_loss_of_rllib_left_it() -> None:
    policy: Any = policy_of(ACTIVE)
    policy.load_batch_into_buffer(batch_of(policy))
    (batch,) = policy._loaded_batches[0]
    policy.loss(policy.model, policy.dist_class, batch)
    expected, _ = policy.model(batch)
    values = policy.model.value_function()
    policy.loss(policy.model, policy.dist_class, batch)
    assert torch.equal(policy.model.last_output(), expected)
    assert torch.equal(policy.model.value_function(), values)


@pytest.mark.parametrize("name", ANY_POLICY)
def test_every_regularizer_trains(name: str) -> None:
    members = [{"name": "aajr", "interval": 1}, {"name": "smooth_policy", "interval": 1}]
    regularizer = make_regularizer(name, **({"members": members} if name == "sum" else {"interval": 1}))
    policy, plain = policy_of(regularizer), policy_of(None)
    stats = learn(policy, batch_of(policy))
    learn(plain, batch_of(plain))
    assert stats[f"{name}/nonfinite"] == 0
    assert not same(plain, policy)


def test_a_restored_policy_goes_on_as_if_it_had_not_stopped() -> None:
    regularizer = AAJR(coefficient=0.1, form="constraint", gain_bound=1e-3, interval=1)
    schedules: dict[str, Any] = {
        "lr_schedule": [[0, 1e-2], [400, 1e-3]],
        "entropy_coeff_schedule": [[0, 0.1], [400, 0.0]],
    }
    straight: Any = policy_of(regularizer, **schedules)
    batch = batch_of(straight)
    learn(straight, batch)
    straight.update_kl(1.0)
    state = pickle.loads(cloudpickle.dumps(straight.get_state()))
    assert state["marl_aajr"]["state"]["dual"] != 0.1

    restored: Any = policy_of(regularizer, seed=7, **schedules)
    restored.set_state(pickle.loads(cloudpickle.dumps(state)))
    assert restored.entropy_coeff == straight.entropy_coeff < 0.1
    for policy in (straight, restored):
        learn(policy, batch)
    assert same(straight, restored)
    assert straight.get_state()["marl_aajr"] == restored.get_state()["marl_aajr"]

    forgetful: Any = policy_of(regularizer, seed=7, **schedules)
    del state["marl_aajr"]
    forgetful.set_state(state)
    learn(forgetful, batch)
    assert not same(straight, forgetful)


def test_schedules_follow_the_steps_that_rllib_reports() -> None:
    policy = policy_of(AAJR(coefficient=((0, 0.0), (100, 0.0), (200, 0.1)), interval=1))
    batch = batch_of(policy)
    seen = ["aajr/penalty" in learn(policy, batch, times=1) for _ in range(3)]
    assert seen == [False, False, True]


class NotPPO(ImpalaTorchPolicy):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robustify_policy(NotPPO, ACTIVE), "derived from RLlib's PPOTorchPolicy, got .*NotPPO"),
        (lambda: robustify_policy(PPOTorchPolicy, "aajr"), "expected a regularizer, got 'aajr'"),  # type: ignore[arg-type]
        (
            lambda: robustify_policy(PPOTorchPolicy, AAJR(directions="rollout", objective="margin")),
            "expected rollouts under attack that keep the path",
        ),
        (
            lambda: policy_of(AAJR(directions="epoch")),
            "expected a module and learner with epochs for directions='epoch', got .*; choose another",
        ),
        (lambda: policy_of(make_regularizer("spectral_normalization")), "works through the loss"),
        (lambda: policy_of(ACTIVE + make_regularizer("spectral_normalization")), "works through the loss"),
        (lambda: policy_of(ACTIVE, obs=gym.spaces.Discrete(5)), "with floating-point numbers to perturb"),
        (lambda: policy_of(ACTIVE, num_gpus=2, _fake_gpus=True), "expected one device .* got 2"),
        (
            lambda: policy_of(AAJR(output="probs"), actions=gym.spaces.Box(-1, 1, (2,))),
            "for a Gaussian policy, got 'probs'",
        ),
        (
            lambda: robustify(on_old_stack(ppo_config("a")), ACTIVE),
            "or give its policies robustify_policy's class",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("ray_session")
def test_a_multi_agent_ppo_trains_and_is_restored(tmp_path: Path) -> None:
    algorithm = old_stack().build_algo()
    try:
        before = {name: weights(algorithm.get_policy(name)) for name in MODELS}
        result = algorithm.train()
        for name, old in before.items():
            stats = result["info"]["learner"][name][LEARNER_STATS_KEY]
            assert stats["aajr/penalty"] > 0
            assert stats["aajr/nonfinite"] == 0
            new = weights(algorithm.get_policy(name))
            assert any(not np.array_equal(old[key], new[key]) for key in old)
        algorithm.save(str(tmp_path / "checkpoint"))
        restored = Algorithm.from_checkpoint(str(tmp_path / "checkpoint"))
        try:
            for name in before:
                states = [one.get_policy(name).get_state()["marl_aajr"] for one in (algorithm, restored)]
                assert states[0] == states[1]
                assert states[0]["timestep"] > 0
                assert same(algorithm.get_policy(name), restored.get_policy(name))
        finally:
            restored.stop()
    finally:
        algorithm.stop()
