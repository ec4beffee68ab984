"""From a run's configuration to an RLlib algorithm.

Everything that can be wrong with a configuration is found in `build_config`, which touches neither Ray
nor the disk, and what its machine may lack in `check_machine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from marl_aajr.core.checks import Schedule
from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import TO_FLOAT, split
from marl_aajr.language.models import has_weights
from marl_aajr.rllib import robustify
from marl_aajr.rllib.internals.algorithms import RunAPPO, RunIMPALA, RunPPO
from marl_aajr.rllib.internals.learners import resumable_learner_class
from marl_aajr.rllib.language_module import check_epsilon
from marl_aajr.rllib.networks import check_observation_space
from marl_aajr.rllib.plugin.attacked_measures import ReturnsUnderAttack
from marl_aajr.rllib.plugin.robustify import REQUESTS_IN_FLIGHT
from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.episode_metrics import EpisodeReturns
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rllib.sampling.run_env_runner import RunEnvRunner
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.atla_phases import PhaseOfRecreated, phases_of
from marl_aajr.training.batches import batches_of, check_disturbance
from marl_aajr.training.checkpoint import StartRecreated
from marl_aajr.training.config import RunConfig
from marl_aajr.training.method import NO_METHOD
from marl_aajr.training.method_checks import check_atla, check_attack, check_regularizers
from marl_aajr.training.policy_mapping import ModuleOf, PolicyMapping, module_spec, policy_mapping_of
from marl_aajr.training.resources import Resources
from marl_aajr.training.team_methods import TeamMethods, team_methods


def build_config(config: RunConfig) -> AlgorithmConfig:
    """RLlib's configuration of a run.

    With the stock runner, method `none` trains with RLlib's own PPO learner; its checkpoints hold more.

    Raises:
        ValueError: an unknown environment, or one that cannot be played with this method, model or filter.
    """
    spec = resolve(config.env.name, config.env.kwargs)
    team = policy_mapping_of(config)
    methods = team_methods(config, team)
    _check_playable(config, team, methods)
    check_disturbance(config)
    atla = phases_of(methods.atla, team)
    if atla is not None:
        check_atla(config, atla)
    mapping = team if atla is None else atla.both_sides()
    result = (
        start_config(config)
        .framework("torch")
        .environment(
            register(spec, time_limits_terminate=config.time_limits_terminate, critic=config.model.critic)
        )
        .multi_agent(policies=list(mapping.modules), policy_mapping_fn=ModuleOf(mapping.module_of))
        .rl_module(rl_module_spec=_module_specs(config, mapping))
        .callbacks(
            on_episode_end=EpisodeReturns(mapping.teams),
            on_env_runners_recreated=[
                StartRecreated(seed=config.seed, threads=config.resources.torch_threads),
                *([] if atla is None else [PhaseOfRecreated()]),
            ],
        )
        .fault_tolerance(restart_failed_env_runners=True)
        # Nobody reads the load that RLlib would measure, for whose thread the end of a run waits up to 0.7 s.
        .debugging(seed=config.seed, log_level="ERROR", log_sys_usage=False)
    )
    _set_processes(result, config)
    if config.observation_filter != "none":
        result.env_runners(env_to_module_connector=lambda *_: ObservationNormalizer())
    _set_methods(result, config, team, methods)
    if atla is not None:
        entropy = PPOConfig.overrides(entropy_coeff=rllib_schedule(atla.settings.adversary_entropy_coeff))
        each = dict.fromkeys(atla.adversaries.modules, entropy)
        result.multi_agent(algorithm_config_overrides_per_module=each)
    if config.resources.runner == "fast":
        # RLlib gives the runner in the main process no GPU.
        device = "cuda" if _main_process(config.resources)["gpus_per_env_runner"] else None
        fast(
            result,
            batches_of(config, spec, methods.atla),
            time_limits_terminate=config.time_limits_terminate,
            critic=config.model.critic,
            device=device,
            env_processes=config.resources.env_processes,
            rollouts=methods.attack,
        )
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
        result.env_runners(max_requests_in_flight_per_env_runner=REQUESTS_IN_FLIGHT)
    result.learners(
        num_learners=resources.learners,
        num_cpus_per_learner=resources.cpus_per_learner,
        num_gpus_per_learner=resources.gpus_per_learner,
    )


def _set_methods(
    result: AlgorithmConfig, config: RunConfig, mapping: PolicyMapping, methods: TeamMethods
) -> None:
    attacked: Mapping[str, RolloutAttack] = {}
    if methods.attack is not None:
        attacked = check_attack(methods.attack, config, mapping)
    if methods.regularizers:
        check_regularizers(config, mapping, methods, attacked)
        if config.model.language is not None:
            for name, regularizer in methods.regularizers.items():
                check_epsilon(result.rl_module_spec.rl_module_specs[name].model_config, regularizer)
        robustify(result, dict(sorted(methods.regularizers.items())))
    else:
        result.learners(learner_class=resumable_learner_class(result.learner_class))
    if methods.attack is not None and config.resources.runner == "stock":
        robustify(result, None, rollouts=methods.attack)
        ended = [EpisodeReturns(mapping.teams), ReturnsUnderAttack(mapping.teams)]
        result.callbacks(on_episode_end=ended)


def _check_playable(config: RunConfig, mapping: PolicyMapping, methods: TeamMethods) -> None:
    for agent, space in mapping.observation_spaces.items():
        check_observation_space(agent, space)
        from_space(mapping.action_spaces[agent])
        box, _ = split(space)
        method = methods.methods[mapping.module_of[agent]].name
        reads = config.model.language is not None  # what it perturbs is embedded
        needs_floats = [f"method {method}"] * (method not in (NO_METHOD, RolloutAttack.name) and not reads)
        needs_floats += ["observation_filter mean_std"] * (config.observation_filter != "none")
        if needs_floats and not np.issubdtype(box.dtype, np.floating):
            raise ValueError(
                f"expected floating-point observations for {needs_floats[0]}, got {box.dtype} for agent "
                f"{agent!r} of {config.env.name}; make them floats ({TO_FLOAT}), or set "
                "it to none"
            )
    played = str(config.env.kwargs.get("env"))  # of an adversary: its victims' environment
    if config.resources.env_runners and played.startswith("__main__:"):
        raise ValueError(
            f"expected env_runners = 0 for an adversary in {played}, which other processes cannot find, got "
            f"{config.resources.env_runners}; set 0, or move the environment into a module"
        )
    if config.resources.runner == "stock" and _main_process(config.resources)["gpus_per_env_runner"]:
        raise ValueError(
            "expected env_runners > 0 for resources.gpus_per_env_runner > 0 with RLlib's own runner, got 0; "
            "set env_runners, or the runner to fast"
        )


def check_first_weights(config: RunConfig) -> None:
    """Raise `ValueError` where the folder of a language model has no weights to begin with."""
    language = config.model.language
    if language is not None and language.folder is not None and not has_weights(language.folder):
        raise ValueError(
            f"expected a model.safetensors in model.language.folder {language.folder}, got none; "
            "save_pretrained writes it"
        )


def check_machine(resources: Resources) -> None:
    """Raise `ValueError` where this machine has no GPU, and the main process of a run needs one."""
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


def _module_specs(config: RunConfig, mapping: PolicyMapping) -> MultiRLModuleSpec:
    return MultiRLModuleSpec(
        rl_module_specs={
            module: module_spec(
                config.model,
                mapping.module_space(agent),
                mapping.action_spaces[agent],
                target_network=config.algorithm == "appo",
                words=mapping.words(agent),
            )
            for module, agent in mapping.modules.items()
        }
    )


def start_config(config: RunConfig) -> AlgorithmConfig:
    """RLlib's configuration with the algorithm and its numbers, and nothing else yet."""
    ppo, learners = config.ppo, max(config.resources.learners, 1)
    kl = {"use_kl_loss": ppo.kl_coeff > 0, "kl_coeff": ppo.kl_coeff, "kl_target": ppo.kl_target}
    result: AlgorithmConfig
    if config.algorithm == "ppo":
        result = PPOConfig(algo_class=RunPPO).training(
            lambda_=ppo.gae_lambda,
            clip_param=ppo.clip,
            vf_clip_param=math.inf if ppo.vf_clip is None else ppo.vf_clip,
            num_epochs=ppo.epochs,
            minibatch_size=ppo.minibatch_size // learners,
            **kl,
        )
    elif config.algorithm == "appo":
        result = APPOConfig(algo_class=RunAPPO).training(clip_param=ppo.clip, **kl)
    else:
        result = IMPALAConfig(algo_class=RunIMPALA)
    if config.algorithm != "ppo":  # an iteration ends when a batch is learned from, not after ten seconds
        result.reporting(min_time_s_per_iteration=0, min_train_timesteps_per_iteration=ppo.train_batch_size)
    return result.training(
        lr=rllib_schedule(ppo.lr),
        gamma=ppo.gamma,
        vf_loss_coeff=ppo.vf_loss_coeff,
        entropy_coeff=rllib_schedule(ppo.entropy_coeff),
        train_batch_size_per_learner=ppo.train_batch_size // learners,
        grad_clip=ppo.grad_clip,
        grad_clip_by="global_norm",
    )


def rllib_schedule(schedule: Schedule) -> float | list[list[float]]:
    """A schedule as RLlib takes it."""
    return schedule if isinstance(schedule, float) else [[int(step), value] for step, value in schedule]
