"""The kind of script that RLlib's documentation has for PettingZoo environments, and one line more."""

from __future__ import annotations

import sys

import ray
from mpe2 import simple_spread_v3
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

from marl_aajr import AAJR, RolloutAttack, robustify
from tests.conftest import QUOTED_PYTHON


def main(address: str, storage: str) -> None:
    ray.init(address=address, runtime_env=QUOTED_PYTHON)
    register_env("spread", lambda _: ParallelPettingZooEnv(simple_spread_v3.parallel_env(N=2, max_cycles=10)))
    config = (
        PPOConfig()
        .environment("spread")
        .env_runners(num_env_runners=1, rollout_fragment_length=50)
        .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8]))
        .training(train_batch_size_per_learner=50, minibatch_size=50, num_epochs=1)
    )
    attack = RolloutAttack(epsilon=0.1)
    config = robustify(config, AAJR(coefficient=1e-3, epsilon=0.1), rollouts=attack)  # the one line
    results = tune.Tuner(
        "PPO",
        param_space=config,
        run_config=tune.RunConfig(
            name="spread",
            storage_path=storage,
            stop={"training_iteration": 2},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    ).fit()
    assert not results.errors, results.errors
    assert results[0].checkpoint is not None


if __name__ == "__main__":
    main(*sys.argv[1:])
