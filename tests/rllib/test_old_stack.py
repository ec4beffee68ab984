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
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_torch_policy import PPOTorchPolicy
from ray.rllib.models import ModelCatalog
from ray.rllib.models.preprocessors import get_preprocessor
from ray.rllib.models.torch.fcnet import FullyConnectedNetwork
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.policy import PolicySpec
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY
from torch import Tensor, nn

from marl_aajr import AAJR, robustify, robustify_policy
from marl_aajr.regularizers import REGULARIZERS, Regularizer, make_regularizer
from marl_aajr.rllib.env import register
from marl_aajr.rllib.old_stack_model import Features, model_sample
from marl_aajr.rollout.environments import resolve
from tests.rllib.learners import ppo_config

OBS = gym.spaces.Box(-10, 10, (4,), np.float32)
ACTIONS = gym.spaces.Discrete(3)
ACTIVE = AAJR(coefficient=0.1, epsilon=0.2, adversarial_weight=0.5, sample_fraction=1.0)
SMALL = {"fcnet_hiddens": [8], "vf_share_layers": False}
LSTM = {**SMALL, "use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5}
ATTENTION = {
    **SMALL,
    "use_attention": True,
    "attention_dim": 8,
    "attention_head_dim": 8,
    "attention_num_heads": 1,
    "attention_memory_inference": 5,
    "attention_memory_training": 5,
    "max_seq_len": 5,
}
MASKED = gym.spaces.Dict(
    {
        "observation": OBS,
        "phase": gym.spaces.Discrete(2),
        "action_mask": gym.spaces.Box(0, 1, (3,), np.int8),
    }
)
IMAGE = gym.spaces.Box(-1, 1, (6, 6, 2), np.float32)
CONVOLUTION = {"conv_filters": [[4, [3, 3], 2], [8, [3, 3], 1]], "fcnet_hiddens": []}


class MaskedModel(TorchModelV2, nn.Module):
    """Actions under the mask only; raises if anybody moves the mask or the phase."""

    def __init__(
        self, obs_space: Any, action_space: Any, num_outputs: int, model_config: Any, name: str
    ) -> None:
        TorchModelV2.__init__(self, obs_space, action_space, num_outputs, model_config, name)
        nn.Module.__init__(self)
        self.body = FullyConnectedNetwork(OBS, action_space, num_outputs, model_config, name)

    def forward(self, input_dict: Any, state: Any, seq_lens: Any) -> Any:
        parts = input_dict["obs"]
        mask = parts["action_mask"]
        assert ((mask == 0) | (mask == 1)).all()
        assert ((parts["phase"] == 0) | (parts["phase"] == 1)).all()
        logits, _ = self.body({"obs": parts["observation"]})
        return logits + mask.clamp_min(1e-30).log(), state

    def value_function(self) -> Tensor:
        return self.body.value_function()


ModelCatalog.register_custom_model("masked", MaskedModel)


def policy_of(
    regularizer: Regularizer | None,
    *,
    obs: gym.Space[Any] = OBS,
    actions: gym.Space[Any] = ACTIONS,
    model: dict[str, Any] = SMALL,
    seed: int = 0,
    **config: Any,
) -> PPOTorchPolicy:
    torch.manual_seed(seed)
    cls = PPOTorchPolicy if regularizer is None else robustify_policy(PPOTorchPolicy, regularizer)
    settings = {"lr": 1e-2, "seed": 0, "__policy_id": "a", "vf_clip_param": 1e9, **config}
    base = on_old_stack(PPOConfig()).to_dict()
    space = get_preprocessor(obs)(obs).observation_space
    return cls(space, actions, {**base, **settings, "model": {**base["model"], **model}})


def on_old_stack(config: PPOConfig) -> PPOConfig:
    return config.api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    ).framework("torch")


def batch_of(policy: PPOTorchPolicy, *, rows: int = 40, seed: int = 0) -> SampleBatch:
    """What sampling and GAE leave of random observations; sequences of 5, 3, 5, 3, … steps."""
    rng = np.random.default_rng(seed)
    space = policy.observation_space
    original = getattr(space, "original_space", space)
    for sampled in (original, policy.action_space):
        sampled.seed(seed)
    encode = get_preprocessor(original)(original).transform
    obs = np.stack([encode(original.sample()) for _ in range(rows)])
    outputs = rng.normal(size=(rows, 3)).astype(np.float32)
    columns = {
        SampleBatch.OBS: obs,
        SampleBatch.ACTIONS: np.array([policy.action_space.sample() for _ in range(rows)]),
        SampleBatch.ACTION_DIST_INPUTS: outputs,
        SampleBatch.ACTION_LOGP: np.full(rows, -1.0, np.float32),
        SampleBatch.VF_PREDS: np.zeros(rows, np.float32),
        SampleBatch.REWARDS: np.zeros(rows, np.float32),
        SampleBatch.TERMINATEDS: np.zeros(rows, bool),
        SampleBatch.TRUNCATEDS: np.zeros(rows, bool),
        "advantages": rng.normal(size=rows).astype(np.float32),
        "value_targets": rng.normal(size=rows).astype(np.float32),
    }
    if policy.is_recurrent():
        lengths = [5, 3] * (rows // 8)
        columns[SampleBatch.SEQ_LENS] = np.array(lengths, np.int32)
        for i, state in enumerate(policy.get_initial_state()):
            columns[f"state_in_{i}"] = np.stack([state + 0.1 * n for n in range(len(lengths))])
    return SampleBatch(columns)


def learn(policy: PPOTorchPolicy, batch: SampleBatch, *, times: int = 2) -> dict[str, float]:
    """Updates from a batch; the statistics of the last."""
    for _ in range(times):
        policy.load_batch_into_buffer(batch.copy())
        stats = policy.learn_on_loaded_batch()[LEARNER_STATS_KEY]
        policy.on_global_var_update(
            {"timestep": policy._timestep + 100 if hasattr(policy, "_timestep") else 0}
        )
    return {name: float(value) for name, value in stats.items()}


def weights(policy: PPOTorchPolicy) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in policy.get_weights().items()}


def same(left: PPOTorchPolicy, right: PPOTorchPolicy) -> bool:
    pairs = zip(weights(left).values(), weights(right).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


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


def outputs_of(policy: PPOTorchPolicy, batch: SampleBatch) -> SampleBatch:
    """The batch with outputs of the right width."""
    rows = len(batch[SampleBatch.OBS])
    width = {gym.spaces.MultiDiscrete: 4, gym.spaces.Box: 4}.get(type(policy.action_space), 3)
    batch[SampleBatch.ACTION_DIST_INPUTS] = np.zeros((rows, width), np.float32)
    return batch


@SERVED
def test_the_adapter_computes_what_the_model_does(kwargs: dict[str, Any]) -> None:
    policy: Any = policy_of(ACTIVE, **kwargs)
    policy.load_batch_into_buffer(outputs_of(policy, batch_of(policy)))
    (batch,) = policy._loaded_batches[0]
    outputs, _ = policy.model(batch)
    sample = model_sample(
        policy.model,
        batch,
        features=policy._features,
        distribution=policy._regularized.distribution,
        policy_loss=lambda *_: torch.zeros(()),
    )
    torch.testing.assert_close(sample.outputs.flatten(0, -2), outputs)
    assert sample.values is not None
    torch.testing.assert_close(sample.values(sample.obs).flatten(), policy.model.value_function())
    few = torch.tensor([2, 0])
    torch.testing.assert_close(sample.select(few).policy(sample.obs[few]), sample.outputs[few])
    twice = sample.policy.repeat(2)(torch.cat([sample.obs, sample.obs]))
    torch.testing.assert_close(twice, torch.cat([sample.outputs, sample.outputs]))


def test_what_may_be_perturbed_of_a_nested_observation() -> None:
    space = get_preprocessor(MASKED)(MASKED).observation_space
    features = Features.of(space, None)
    # action_mask (3), observation (4), phase (2, one-hot)
    assert features.open.tolist() == [3, 4, 5, 6]
    whole = torch.arange(9.0).expand(2, 9)
    assert torch.equal(features.join(*features.split(whole)), whole)
    with pytest.raises(ValueError, match="expected leaves out of observation, got 'phase'"):
        Features.of(space, ("phase",))


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


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name != "spectral_normalization"])
def test_every_regularizer_trains(name: str) -> None:
    members = {"members": [{"name": "aajr"}, {"name": "smooth_policy", "coefficient": 0.1}]}
    regularizer = make_regularizer(name, **(members if name == "sum" else {}))
    policy, plain = policy_of(regularizer), policy_of(None)
    stats = learn(policy, batch_of(policy))
    learn(plain, batch_of(plain))
    assert stats[f"{name}/nonfinite"] == 0
    assert not same(plain, policy)


def test_a_restored_policy_goes_on_as_if_it_had_not_stopped() -> None:
    regularizer = AAJR(coefficient=0.1, form="constraint", gain_bound=1e-3)
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
    policy = policy_of(AAJR(coefficient=((0, 0.0), (100, 0.0), (200, 0.1))))
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


MODELS = {"mlp": SMALL, "lstm": {**LSTM, "lstm_use_prev_reward": True}, "attention": ATTENTION}


def old_stack() -> PPOConfig:
    """Three agents, and a policy of another kind for each."""
    robust = robustify_policy(PPOTorchPolicy, ACTIVE)
    return (
        on_old_stack(PPOConfig())
        .environment(register(resolve("simple_spread_v3", {"max_cycles": 10})), disable_env_checking=True)
        .env_runners(num_env_runners=0, rollout_fragment_length=50)
        .training(train_batch_size=50, minibatch_size=30, num_epochs=1)
        .multi_agent(
            policies={
                name: PolicySpec(policy_class=robust, config={"model": model})
                for name, model in MODELS.items()
            },
            policy_mapping_fn=lambda agent, *_, **__: list(MODELS)[int(agent[-1])],
        )
        .debugging(seed=0, log_level="ERROR")
    )


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
