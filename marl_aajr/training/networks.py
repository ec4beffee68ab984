"""From a run's networks to RLlib's modules."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from marl_aajr.rllib.mappo import MAPPOModule
from marl_aajr.rllib.modules import ORTHOGONAL_GAIN, FlatActorCritic, needs_flat_module
from marl_aajr.training.config import ModelConfig


def module_spec(
    model: ModelConfig,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    target_network: bool = False,
) -> RLModuleSpec:
    """RLlib's module for these spaces and settings: its own where that will do.

    Raises:
        ValueError: an LSTM, or APPO's target network, where only our own modules will do, which have none.
    """
    orthogonal: dict[str, Any] = {}
    if model.initialization == "orthogonal":
        orthogonal = {
            "fcnet_kernel_initializer": "orthogonal_",
            "fcnet_kernel_initializer_kwargs": {"gain": ORTHOGONAL_GAIN},
            "fcnet_bias_initializer": "zeros_",
        }
    settings = DefaultModelConfig(
        fcnet_hiddens=list(model.hidden),
        fcnet_activation=model.activation,
        vf_share_layers=False,
        use_lstm=model.lstm is not None,
        lstm_cell_size=model.lstm or DefaultModelConfig.lstm_cell_size,
        max_seq_len=model.sequence_length,
        free_log_std=model.free_log_std and isinstance(action_space, gym.spaces.Box),
        **orthogonal,
    )
    default = DefaultAPPOTorchRLModule if target_network else DefaultPPOTorchRLModule
    kind: type[TorchRLModule] = default
    if model.critic != "own":
        kind = MAPPOModule
    elif needs_flat_module(observation_space):
        kind = FlatActorCritic
    if model.lstm is not None and kind is not default:
        raise ValueError(
            "expected one-dimensional float observations without action masks, and model.critic own, for "
            f"model.lstm, got {observation_space}; leave it out, or flatten the observations"
        )
    if target_network and kind is not default:
        raise ValueError(
            "expected one-dimensional float observations without action masks for algorithm appo, got "
            f"{observation_space}; use ppo or impala, or flatten the observations"
        )
    return RLModuleSpec(
        module_class=kind,
        model_config=settings,
        observation_space=observation_space,
        action_space=action_space,
    )
