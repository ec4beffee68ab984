"""From a run's configuration to an RLlib algorithm.

Everything that can be wrong with a configuration is found in `build_config`, which touches neither Ray
nor the disk, and what its machine may lack in `check_machine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from marl_aajr.core.distributions import from_space
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.rllib import robustify
from marl_aajr.rllib.networks import (
    check_observation_space,
    split,
)
from marl_aajr.rllib.plugin.learner import resumable_learner_class
from marl_aajr.rllib.plugin.observation_layout import check_leaves
from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.env_runners import RunEnvRunner
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.sampling.metrics import EpisodeReturns
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer, filtered_shape
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.perturbed import PerturbedGame
from marl_aajr.training.atla_phases import Sides, TellRecreated, sides_of
from marl_aajr.training.config import Resources, RunConfig
from marl_aajr.training.policy_mapping import Roster, roster_of
from marl_aajr.training.randomness import StartRecreated
from marl_aajr.training.rllib_settings import module_spec, rllib_schedule, start_config

_REQUESTS_IN_FLIGHT = 64
"""RLlib drops a broadcast of weights or filters to a runner that has more than this many to work off; with
its default of 1 it depends on timing whether a runner gets its filter."""


@dataclass(frozen=True)
class ModuleOf:
    """RLlib's `policy_mapping_fn`."""

    modules: Mapping[str, str]

    def __call__(self, agent_id: str, episode: Any = None, **_: Any) -> str:
        return self.modules[agent_id]


def build_config(config: RunConfig) -> AlgorithmConfig:
    """RLlib's configuration of a run.

    With the stock runner, method `none` trains with RLlib's own PPO learner; its checkpoints hold more.

    Raises:
        ValueError: an unknown environment, or one that cannot be played with this method, model or filter.
    """
    spec = resolve(config.env.name, config.env.kwargs)
    team = roster_of(config)
    _check_playable(config, team)
    sides = sides_of(config, team)
    if sides is not None:
        _check_sides(config, sides)
    roster = team if sides is None else sides.everybody()
    result = (
        start_config(config)
        .framework("torch")
        .environment(register(spec, parity=config.parity, critic=config.model.critic))
        .multi_agent(policies=list(roster.modules), policy_mapping_fn=ModuleOf(roster.module_of))
        .rl_module(rl_module_spec=_module_specs(config, roster))
        .callbacks(
            on_episode_end=EpisodeReturns(roster.teams),
            on_env_runners_recreated=[
                StartRecreated(seed=config.seed, threads=config.resources.torch_threads),
                *([] if sides is None else [TellRecreated()]),
            ],
        )
        .fault_tolerance(restart_failed_env_runners=True)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    _set_processes(result, config)
    _set_filter(result, config, roster)
    _set_method(result, config, team)
    if sides is not None:
        _set_sides(result, sides)
    if config.resources.runner == "fast":
        # RLlib gives the runner in the main process no GPU.
        device = "cuda" if _main_process(config.resources)["gpus_per_env_runner"] else None
        source = spec if sides is None else PerturbedGame(spec, sides.atla.agents, sides.atla.adversary)
        fast(result, source, parity=config.parity, critic=config.model.critic, device=device)
    return result


def _set_processes(result: AlgorithmConfig, config: RunConfig) -> None:
    resources = config.resources
    result.env_runners(
        env_runner_cls=RunEnvRunner,
        num_env_runners=resources.env_runners,
        num_envs_per_env_runner=resources.copies,
        num_cpus_per_env_runner=resources.cpus_per_env_runner,
        num_gpus_per_env_runner=resources.gpus_per_env_runner,
    )
    if config.algorithm == "ppo":
        # For the others it is how far a runner may be ahead of the learner.
        result.env_runners(max_requests_in_flight_per_env_runner=_REQUESTS_IN_FLIGHT)
    result.learners(
        num_learners=resources.learners,
        num_cpus_per_learner=resources.cpus_per_learner,
        num_gpus_per_learner=resources.gpus_per_learner,
    )


def _set_filter(result: AlgorithmConfig, config: RunConfig, roster: Roster) -> None:
    if config.observation_filter == "none":
        return
    shapes = {module: filtered_shape(roster.module_space(agent)) for module, agent in roster.modules.items()}
    connect = partial(_normalizer, module_of=dict(roster.module_of), shapes=shapes)
    result.env_runners(env_to_module_connector=connect)


def _set_method(result: AlgorithmConfig, config: RunConfig, roster: Roster) -> None:
    regularizer = config.method.regularizer(env_steps=config.env_steps)
    if regularizer is None:
        result.learners(learner_class=resumable_learner_class(result.learner_class))
        return
    offers: frozenset[Need] = EVERYTHING
    if config.model.critic != "own":  # a centralised critic does not judge an observation alone
        offers -= {"critic"}
    if config.algorithm != "ppo":  # the losses of APPO and IMPALA are not taken row by row
        offers -= {"policy_loss", "advantages"}
    for module, agent in roster.modules.items():
        try:
            regularizer.check(from_space(roster.action_spaces[agent]), offers=offers)
            check_leaves(roster.observation_spaces[agent], regularizer.perturbed_leaves)
        except ValueError as error:
            raise ValueError(f"method {config.method.name}, module {module!r}: {error}") from None
    robustify(result, dict.fromkeys(sorted(roster.modules), regularizer))


def _set_sides(result: AlgorithmConfig, sides: Sides) -> None:
    entropy = PPOConfig.overrides(entropy_coeff=rllib_schedule(sides.atla.adversary_entropy_coeff))
    result.multi_agent(
        algorithm_config_overrides_per_module=dict.fromkeys(sides.adversaries.modules, entropy)
    )


def build_algorithm(config: RunConfig) -> Algorithm:
    """The algorithm of a run; Ray must be running.

    Raises:
        ValueError: see `build_config`.
    """
    return build_config(config).build_algo()


def _check_playable(config: RunConfig, roster: Roster) -> None:
    for agent, space in roster.observation_spaces.items():
        check_observation_space(agent, space)
        from_space(roster.action_spaces[agent])
        box, _ = split(space)
        needs_floats = [f"method {config.method.name}"] * (config.method.name != "none")
        needs_floats += ["observation_filter mean_std"] * (config.observation_filter != "none")
        if needs_floats and not np.issubdtype(box.dtype, np.floating):
            raise ValueError(
                f"expected floating-point observations for {needs_floats[0]}, got {box.dtype} for agent "
                f"{agent!r} of {config.env.name}; convert them in the environment, or set it to none"
            )
    if config.resources.runner == "stock" and _main_process(config.resources)["gpus_per_env_runner"]:
        raise ValueError(
            "expected env_runners > 0 for resources.gpus_per_env_runner > 0 with RLlib's own runner, got 0; "
            "set env_runners, or the runner to fast"
        )


def _check_sides(config: RunConfig, sides: Sides) -> None:
    """Raise `ValueError` for what cannot be trained in alternation with adversaries."""
    if config.resources.runner != "fast":
        raise ValueError(
            f"expected resources.runner fast for method {config.method.name}, got {config.resources.runner}: "
            "RLlib's own knows no game in which several agents wait for several others"
        )
    if config.model.critic == "joint":
        raise ValueError(
            f"expected model.critic own or state for method {config.method.name}, got joint: agents and "
            "their adversaries never see something at the same time"
        )
    if sides.atla.adversary == "pa-ad" and config.model.lstm is not None:
        raise ValueError(
            f"expected no model.lstm for method {config.method.name} with adversary pa-ad, whose ascent "
            f"knows no memory, got {config.model.lstm}; use sa-rl"
        )


def check_machine(resources: Resources) -> None:
    """Whether this machine has what the main process of a run needs.

    Raises:
        ValueError: it has no GPU.
    """
    asked = [name for name, gpus in _main_process(resources).items() if gpus]
    if asked and not torch.cuda.is_available():
        raise ValueError(
            f"expected a GPU in this machine for resources.{asked[0]} > 0 in the main process, got none; set "
            "it to 0"
        )


def _main_process(resources: Resources) -> dict[str, float]:
    """The GPUs of what happens in the main process, by setting."""
    return {
        "gpus_per_learner": 0.0 if resources.learners else resources.gpus_per_learner,
        "gpus_per_env_runner": 0.0 if resources.env_runners else resources.gpus_per_env_runner,
    }


def _module_specs(config: RunConfig, roster: Roster) -> MultiRLModuleSpec:
    return MultiRLModuleSpec(
        rl_module_specs={
            module: module_spec(
                config.model,
                roster.module_space(agent),
                roster.action_spaces[agent],
                target_network=config.algorithm == "appo",
            )
            for module, agent in roster.modules.items()
        }
    )


def _normalizer(env: Any, spaces: Any, device: Any, **settings: Any) -> ObservationNormalizer:
    return ObservationNormalizer(**settings)
