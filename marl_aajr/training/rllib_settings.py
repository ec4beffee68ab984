"""The algorithm of a run with its numbers, as RLlib has them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule

from marl_aajr.core.values import Schedule
from marl_aajr.rllib.internals import RunAPPO, RunIMPALA, RunPPO
from marl_aajr.rllib.networks import ORTHOGONAL_GAIN, FlatActorCritic, MAPPOModule, needs_flat_module
from marl_aajr.training.config import ModelConfig, RunConfig


def start_config(config: RunConfig) -> AlgorithmConfig:
    """RLlib's configuration with the algorithm and its numbers, and nothing else yet."""
    learners = max(config.resources.learners, 1)
    starts = {"ppo": _ppo, "appo": _appo, "impala": _impala}
    return starts[config.algorithm](config, learners).training(
        lr=rllib_schedule(config.ppo.lr),
        gamma=config.ppo.gamma,
        vf_loss_coeff=config.ppo.vf_loss_coeff,
        entropy_coeff=rllib_schedule(config.ppo.entropy_coeff),
        train_batch_size_per_learner=config.ppo.train_batch_size // learners,
        grad_clip=config.ppo.grad_clip,
        grad_clip_by="global_norm",
    )


def _ppo(config: RunConfig, learners: int) -> AlgorithmConfig:
    ppo = config.ppo
    return PPOConfig(algo_class=RunPPO).training(
        lambda_=ppo.gae_lambda,
        clip_param=ppo.clip,
        vf_clip_param=math.inf if ppo.vf_clip is None else ppo.vf_clip,
        num_epochs=ppo.epochs,
        minibatch_size=ppo.minibatch_size // learners,
        **_kl(config),
    )


def _appo(config: RunConfig, learners: int) -> AlgorithmConfig:
    result = APPOConfig(algo_class=RunAPPO).training(clip_param=config.ppo.clip, **_kl(config))
    return _by_batches(result, config)


def _impala(config: RunConfig, learners: int) -> AlgorithmConfig:
    return _by_batches(IMPALAConfig(algo_class=RunIMPALA), config)


def _by_batches(result: AlgorithmConfig, config: RunConfig) -> AlgorithmConfig:
    """An iteration ends when a batch has been learned from, and not after ten seconds."""
    return result.reporting(
        min_time_s_per_iteration=0, min_train_timesteps_per_iteration=config.ppo.train_batch_size
    )


def _kl(config: RunConfig) -> dict[str, Any]:
    ppo = config.ppo
    return {"use_kl_loss": ppo.kl_coeff > 0, "kl_coeff": ppo.kl_coeff, "kl_target": ppo.kl_target}


def rllib_schedule(schedule: Schedule) -> float | list[list[float]]:
    """A schedule as RLlib takes it."""
    if isinstance(schedule, float):
        return schedule
    return [[int(step), value] for step, value in schedule]


# MERGED: networks.py; its docstring belongs into that of this module


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
