"""Whose agents act under attack: those that are named, by the keys that the environment knows them by."""

from __future__ import annotations

from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from marl_aajr import AAJR, robustify
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

EPSILON = 0.1


def first_and_others(agent: int, *_: Any, **__: Any) -> str:
    return "main" if agent == 0 else "others"


def carts() -> AlgorithmConfig:
    """Two agents, 0 and 1."""
    return (
        PPOConfig()
        .environment(MultiAgentCartPole, env_config={"num_agents": 2})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .multi_agent(policies={"main", "others"}, policy_mapping_fn=first_and_others)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .debugging(seed=0, log_level="ERROR")
    )


@pytest.mark.usefixtures("ray_session")
def test_a_regularizer_stands_beside_the_attack_on_its_own_agents() -> None:
    """A loss off-policy may be that of agents whom nobody attacks, and of no others."""
    off_policy = AAJR(adversarial_weight=0.5)
    attack = RolloutAttack(epsilon=EPSILON, agents=(0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves the policy loss as it is with rollouts under attack"):
        robustify(carts(), {"main": off_policy}, rollouts=attack).build_algo()
    robustify(carts(), {"others": off_policy}, rollouts=attack).build_algo().stop()
