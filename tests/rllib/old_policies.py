"""Policies of RLlib's old API stack, small enough for tests, and what they learn from."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
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

from marl_aajr import AAJR, robustify_policy
from marl_aajr.regularizers import Regularizer
from marl_aajr.rllib.sampling.env import register

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


def policy_of(
    regularizer: Regularizer | None,
    *,
    obs: gym.Space[Any] = OBS,
    actions: gym.Space[Any] = ACTIONS,
    model: dict[str, Any] = SMALL,
    seed: int = 0,
    **config: Any,
) -> PPOTorchPolicy:
    ModelCatalog.register_custom_model("masked", MaskedModel)  # each time: perhaps another Ray is up now
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


def outputs_of(policy: PPOTorchPolicy, batch: SampleBatch) -> SampleBatch:
    """The batch with outputs of the right width."""
    rows = len(batch[SampleBatch.OBS])
    width = {gym.spaces.MultiDiscrete: 4, gym.spaces.Box: 4}.get(type(policy.action_space), 3)
    batch[SampleBatch.ACTION_DIST_INPUTS] = np.zeros((rows, width), np.float32)
    return batch


MODELS = {"mlp": SMALL, "lstm": {**LSTM, "lstm_use_prev_reward": True}, "attention": ATTENTION}


def old_stack() -> PPOConfig:
    """Three agents, and a policy of another kind for each."""
    robust = robustify_policy(PPOTorchPolicy, ACTIVE)
    return (
        on_old_stack(PPOConfig())
        .environment(register("simple_spread_v3", kwargs={"max_cycles": 10}), disable_env_checking=True)
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
