"""Fast runners and their configurations, small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rollout.fragments import Fragment

OURS = "marl_aajr.envs.simple_spread_v3"
SPREAD = "mpe2.simple_spread_v3"
TAG = "mpe2.simple_tag_v3"
TICTACTOE = "pettingzoo.classic.tictactoe_v3"
SCRIPTED = "tests.rllib.test_stock_rows:scripted"
CIRCLE = "tests.rllib.test_stock_rows:circle"


def by_side(agent: str, *_: Any, **__: Any) -> str:
    """The module of an agent: the first word of its name."""
    return agent.split("_", maxsplit=1)[0]


def config(
    *modules: str, copies: int = 4, steps: int = 10, seed: int | None = 0, **training: Any
) -> PPOConfig:
    """Plain PPO with one small network per module."""
    settings = {"minibatch_size": 32, "num_epochs": 2, "vf_clip_param": 1e9, **training}
    return (
        PPOConfig()
        .env_runners(num_env_runners=0, num_envs_per_env_runner=copies)
        .multi_agent(policies=set(modules or ("agent",)), policy_mapping_fn=by_side)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16], vf_share_layers=False))
        .training(train_batch_size_per_learner=copies * steps, **settings)
        .debugging(seed=seed, log_level="ERROR")
    )


def masked(configured: PPOConfig) -> PPOConfig:
    """With modules that read action masks."""
    settings = DefaultModelConfig(fcnet_hiddens=[8])
    specs = {
        name: RLModuleSpec(module_class=FlatActorCritic, model_config=settings)
        for name in configured.policies
    }
    return configured.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))


def runner(configured: Any, environment: Any = SPREAD, *, index: int = 0, **settings: Any) -> FastEnvRunner:
    """A runner in this process, without Ray."""
    return FastEnvRunner(config=fast(configured, environment, **settings), worker_index=index)


def fragment(of: FastEnvRunner, **sampling: Any) -> Fragment:
    """The one fragment of a sampling call."""
    (sampled,) = of.sample(**sampling)
    return sampled


def logits(of: FastEnvRunner, module: str, obs: Any) -> Tensor:
    """What a runner's module says of observations."""
    with torch.no_grad():
        out: Tensor = of.module[module].forward_exploration({"obs": obs})["action_dist_inputs"]
    return out


def normalizer(env: Any, spaces: Any, device: Any) -> ObservationNormalizer:
    """RLlib's `env_to_module_connector`: our filter."""
    return ObservationNormalizer()
