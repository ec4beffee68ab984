"""The one line that puts the fast env runner into an existing RLlib configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

from marl_aajr.rllib.internals import custom_connectors, episode_callbacks
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.plugin.learner import resumable_learner_class, robust_learner_class
from marl_aajr.rllib.sampling.batch_env import BatchCreator, BatchFactory, register_batch
from marl_aajr.rllib.sampling.connector import FragmentsToBatch
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.metrics import EpisodeReturns
from marl_aajr.rollout.centralized_critic import Critic
from marl_aajr.rollout.environments import EnvironmentSpec, resolve


def fast(
    config: AlgorithmConfig,
    environment: str | EnvironmentSpec | BatchFactory,
    *,
    kwargs: Mapping[str, Any] | None = None,
    parity: bool = False,
    lean: bool = True,
    device: str | None = None,
    critic: Critic = "own",
) -> AlgorithmConfig:
    """Sample columns from batches of environments instead of episodes; see `FastEnvRunner`.

    `PPO.training_step`, the modules and the updates stay RLlib's. More copies than usual pay off:
    with `num_envs_per_env_runner=128` or so, a step of all costs little more than a step of one.

    Args:
        config: A PPO configuration of the new API stack with its modules and policies declared
            (`multi_agent`) and its training settings made. Call this last, before or after `robustify`.
        environment: A name or specification (`marl_aajr.rollout.environments.resolve`), or a function
            `(num_envs, device) -> BatchedEnv`. Where there is no batched version, copies of the
            environment are stepped one after the other.
        kwargs: Arguments of a named environment.
        parity: Train on the very rows that RLlib's connectors would make: phantom rows, advantages
            standardised over them, time limits as its PettingZoo wrapper has them.
        lean: Make the updates of RLlib's PPO learner with less overhead (`LeanPPOTorchLearner`). A learner
            class of your own stays as it is. (Of several learners, RLlib's own wait for ever where one has no
            row of a module that others have; the lean ones and those of `robustify` stop and say so.)
        device: Where the copies live and actions are computed; None: where RLlib puts the env runner.
        critic: What modules find in their observations beside the agent's own, for centralised critics
            (`marl_aajr.rllib.networks`): nothing (`"own"`), the `"joint"` observation, the `"state"`.

    Returns:
        The same configuration.

    Raises:
        ValueError: A configuration that needs episodes: another algorithm, connectors or callbacks of its
            own, complete episodes; or copies that the learners cannot share equally.

    Example:
        >>> config = PPOConfig().multi_agent(policies={"shared"}, policy_mapping_fn=...).training(lr=5e-4)
        >>> algo = fast(config.env_runners(num_envs_per_env_runner=128), "simple_spread_v3").build_algo()
    """
    _check(config)
    source = environment
    if isinstance(source, str):
        source = resolve(source, kwargs)
    elif kwargs is not None:
        raise ValueError("expected kwargs with the name of an environment only; give them where you build it")
    config.environment(
        register_batch(BatchCreator(source, parity, device, critic)), disable_env_checking=True
    )
    config.env_runners(env_runner_cls=FastEnvRunner)
    config.callbacks_on_episode_end = None
    if lean:
        config.learners(learner_class=_lean(config.learner_class))
    config.learners(
        learner_connector=LearnerConnector(gamma=config.gamma, lambda_=config.lambda_, parity=parity),
        add_default_connectors_to_learner_pipeline=False,
    )
    return config


def _lean(learner: type) -> type:
    classes = dict.fromkeys((PPOTorchLearner, resumable_learner_class(PPOTorchLearner)), LeanPPOTorchLearner)
    classes |= {robust_learner_class(base): robust_learner_class(lean) for base, lean in classes.items()}
    return classes.get(learner, learner)


class LearnerConnector:
    """RLlib's `learner_connector`: builds the learner's pipeline."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, obs_space: gym.Space[Any], action_space: gym.Space[Any]) -> FragmentsToBatch:
        return FragmentsToBatch(obs_space, action_space, **self.settings)


def _check(config: AlgorithmConfig) -> None:
    if not isinstance(config, PPOConfig):
        raise ValueError(f"expected a PPOConfig, got {type(config).__name__}, which trains on episodes")
    if not config.enable_env_runner_and_connector_v2:
        raise ValueError("expected RLlib's new API stack, got a configuration of the old one")
    if config.batch_mode != "truncate_episodes":
        raise ValueError(
            f"expected batch_mode truncate_episodes, got {config.batch_mode}; fragments are of one length"
        )
    connectors = {
        name for name, given in custom_connectors(config).items() if not isinstance(given, LearnerConnector)
    }
    if connectors:
        raise ValueError(
            f"expected no {' and no '.join(sorted(connectors))}, which work on episodes; use RLlib's env "
            "runner"
        )
    callbacks = episode_callbacks(config, EpisodeReturns)
    if callbacks:
        raise ValueError(
            f"expected no callbacks on episodes, got {', '.join(callbacks)}; use RLlib's env runner, or read "
            "the metrics in on_sample_end or on_train_result"
        )
    learners, copies = max(config.num_learners, 1), config.num_envs_per_env_runner
    if copies % learners:
        raise ValueError(
            f"expected num_envs_per_env_runner to be a multiple of num_learners = {learners}, got {copies}"
        )
