"""The reference setting of the benchmarks: runners and configurations, RLlib's own and ours.

Three agents of simple_spread that share a 64x64 tanh policy, 4,000 environment steps an iteration, 10 epochs,
minibatches of 1,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from bench_output import progress

STEPS, COPIES, STOCK_COPIES, MINIBATCH, EPOCHS = 4_000, 160, 16, 1_000, 10
OURS, THEIRS = "marl_aajr.envs.simple_spread_v3", "mpe2.simple_spread_v3"
STOCK_ENV = "bench_stock_simple_spread"


def base_config(copies: int) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    return (
        PPOConfig()
        .env_runners(num_env_runners=0, num_envs_per_env_runner=copies)
        .multi_agent(policies={"shared"}, policy_mapping_fn=shared)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=False))
        .training(
            train_batch_size_per_learner=STEPS,
            minibatch_size=MINIBATCH,
            num_epochs=EPOCHS,
            lr=5e-4,
            entropy_coeff=0.01,
            use_kl_loss=False,
            vf_clip_param=float("inf"),
        )
        .debugging(seed=0, log_level="ERROR")
    )


def shared(agent: str, *_: Any, **__: Any) -> str:
    return "shared"


def register_stock_env() -> None:
    from mpe2 import simple_spread_v3
    from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
    from ray.tune.registry import register_env

    register_env(STOCK_ENV, lambda _: ParallelPettingZooEnv(simple_spread_v3.parallel_env()))


def stock_config() -> Any:
    return base_config(STOCK_COPIES).environment(STOCK_ENV)


def fast_config(environment: str, copies: int, **settings: Any) -> Any:
    from marl_aajr.rllib.sampling.fast import fast

    return fast(base_config(copies), environment, **settings)


def stock_runner() -> Any:
    from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

    return MultiAgentEnvRunner(config=stock_config(), worker_index=0)


def fast_runner(environment: str, copies: int, **settings: Any) -> Any:
    from marl_aajr.rllib.sampling.env_runners import FastEnvRunner

    return FastEnvRunner(config=fast_config(environment, copies, **settings), worker_index=0)


def iteration_seconds(
    algorithms: Mapping[str, Any], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of a whole iteration of each algorithm, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in algorithms}
    for i in range(rounds + 2):  # the first two warm up
        for name, algorithm in algorithms.items():
            progress(f"{name:<40} round {i + 1} of {rounds + 2}")
            started = clock()
            algorithm.train()
            seconds[name].append(clock() - started)
    progress("")
    return {name: median(values[2:]) for name, values in seconds.items()}
