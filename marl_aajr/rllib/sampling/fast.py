"""Fast sampling in an existing RLlib configuration by one line, and its way from fragments to a train batch.

`fast` sets the env runner (`FastEnvRunner`), the learner (`LeanPPOTorchLearner`) and, in place of RLlib's
pipeline of learner connectors, the one connector of this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from marl_aajr.core.mlp import evaluated
from marl_aajr.core.policy import Tree, map_tree
from marl_aajr.rllib.internals.algorithms import custom_connectors, episode_callbacks
from marl_aajr.rllib.internals.learners import resumable_learner_class
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.lean.module_loss import network_inputs, networks
from marl_aajr.rllib.networks import FlatActorCritic, observation_of
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS, PATH, ROLLOUTS_KEY
from marl_aajr.rllib.plugin.robust_learner import robust_learner_class
from marl_aajr.rllib.sampling.batch_env import WITHOUT_FAST, module_of_agents
from marl_aajr.rllib.sampling.env import BY_NAME, BatchFactory, EnvCreator, EnvProcesses
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.episode_metrics import EpisodeReturns
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import Critic
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.rollout.fragments import Fragment, alike
from marl_aajr.rollout.postprocessing import TrainingRows, training_rows
from marl_aajr.rollout.sequences import sequence_rows


def fast(
    config: AlgorithmConfig,
    environment: str | EnvironmentSpec | BatchFactory,
    *,
    kwargs: Mapping[str, Any] | None = None,
    time_limits_terminate: bool = False,
    lean: bool = True,
    device: str | None = None,
    critic: Critic = "own",
    env_processes: EnvProcesses = "auto",
    rollouts: RolloutAttack | None = None,
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
        time_limits_terminate: See `marl_aajr.rllib.sampling.env.PettingZooEnv`.
        lean: Make the updates of RLlib's PPO learner with less overhead (`LeanPPOTorchLearner`). A learner
            class of your own stays as it is. (Of several learners, RLlib's own wait for ever where one has no
            row of a module that others have; the lean ones and those of `robustify` stop and say so.)
        device: Device of the copies and of the modules that act; None: RLlib's choice for the env runner.
        critic: The part of observations beside the agent's own, for centralised critics
            (`marl_aajr.rllib.networks`): nothing (`"own"`), the `"joint"` observation, the `"state"`.
        env_processes: Processes that step an environment without a batched version in each env runner, the
            runner's own among them; what is played does not depend on it. `"auto"`: one a core of the runner
            (in the main process of the machine), as far as each has 8 copies or more, and one alone where
            the environment cannot be built in another process. They take some memory each (simple_spread
            100 MB), and are started once.
        rollouts: The attack that a share of the copies is played under in training; None: there is none.
            What is attacked, and what is not, is as with `robustify`.

    Returns:
        The same configuration.

    Raises:
        ValueError: A configuration that needs episodes: another algorithm, connectors or callbacks of its
            own, complete episodes, agents that change modules; copies that the learners cannot share equally.

    Example:
        >>> config = PPOConfig().multi_agent(policies={"shared"}, policy_mapping_fn=...).training(lr=5e-4)
        >>> algo = fast(config.env_runners(num_envs_per_env_runner=128), "simple_spread_v3").build_algo()
    """
    _check(config)
    named = isinstance(environment, str | EnvironmentSpec)
    source = resolve(environment, kwargs) if named else _batch_factory(environment, kwargs)
    if env_processes != "auto" and (not isinstance(env_processes, int) or env_processes < 1):
        raise ValueError(f"expected env_processes auto or an integer ≥ 1, got {env_processes!r}")
    creator = EnvCreator(source, time_limits_terminate, critic, device, env_processes, rollouts)
    config.environment(creator.register(), disable_env_checking=True)
    if config.num_env_runners > 0 and isinstance(creator.source, EnvironmentSpec):
        # What a remote runner refuses becomes an IndexError of RLlib's.
        game = creator.source.make()
        module_of_agents(game.agent_ids, config.policy_mapping_fn, instead=WITHOUT_FAST)
        game.close()
    config.env_runners(env_runner_cls=FastEnvRunner)
    config.callbacks_on_episode_end = None
    if lean:
        config.learners(learner_class=_lean(config.learner_class))
    config.learner_config_dict.pop(ROLLOUTS_KEY, None)
    if rollouts is not None and rollouts.ever:
        _check_rollouts(config, rollouts)
        config.learners(learner_config_dict={ROLLOUTS_KEY: rollouts})
    config.learners(
        learner_connector=partial(
            FragmentsToBatch,
            gamma=config.gamma,
            lambda_=config.lambda_,
            time_limits_terminate=time_limits_terminate,
            rollouts=rollouts,
        ),
        add_default_connectors_to_learner_pipeline=False,
    )
    return config


def _check_rollouts(config: AlgorithmConfig, rollouts: RolloutAttack) -> None:
    """Raise `ValueError` where training under this attack is refused, as far as a configuration tells."""
    rollouts.check_copies(config.num_envs_per_env_runner)
    if rollouts.critic == "clean" and not issubclass(config.learner_class, LeanPPOTorchLearner):
        raise ValueError(
            f"expected critic 'seen' in rollouts for the learner {config.learner_class.__name__}, got "
            f"'clean'; only LeanPPOTorchLearner (lean=True) lets a critic read others"
        )


def _lean(learner: type) -> type:
    classes = dict.fromkeys((PPOTorchLearner, resumable_learner_class(PPOTorchLearner)), LeanPPOTorchLearner)
    classes |= {robust_learner_class(base): robust_learner_class(lean) for base, lean in classes.items()}
    return classes.get(learner, learner)


def _batch_factory(found: Any, kwargs: Mapping[str, Any] | None) -> BatchFactory:
    if kwargs:
        raise ValueError(f"expected kwargs with the name of an environment only, got {kwargs}")
    try:
        first, *_ = inspect.signature(found).bind(1, torch.device("cpu")).signature.parameters.values()
        fits = first.default is inspect.Parameter.empty
    except (TypeError, ValueError):
        fits = False
    if not fits or (inspect.isclass(found) and not issubclass(found, BatchedEnv)):
        name = getattr(found, "__qualname__", type(found).__name__)
        raise ValueError(f"expected a function (num_envs, device) -> BatchedEnv, got {name}; {BY_NAME}")
    factory: BatchFactory = found
    return factory


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
        name
        for name, given in custom_connectors(config).items()
        if getattr(given, "func", None) is not FragmentsToBatch
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


class FragmentsToBatch(ConnectorV2):
    """Computes values, advantages and value targets, and lays the rows out by module.

    A module that has no sample in the fragments has no batch. The settings are those of GAE, and
    `marl_aajr.rllib.sampling.env.PettingZooEnv`'s of time limits.
    """

    def __init__(
        self,
        *spaces: gym.Space[Any] | None,
        gamma: float,
        lambda_: float,
        time_limits_terminate: bool = False,
        rollouts: RolloutAttack | None = None,
    ) -> None:
        super().__init__(*spaces)
        self.rollouts = rollouts
        self.gamma, self.lambda_ = gamma, lambda_
        self.time_limits_terminate = time_limits_terminate

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[Fragment],
        shared_data: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        if self.time_limits_terminate:
            episodes = [fragment.time_limits_terminate() for fragment in episodes]
        for name in episodes[0].modules:
            module = rl_module[name].unwrapped()
            if not hasattr(module, "compute_values"):
                continue  # Not trained: the runner has seen to it.
            rows = self._rows(name, module, episodes)
            if len(rows):
                batch[name] = _columns(rows, module)
                own = isinstance(module, FlatActorCritic)
                if isinstance(module.observation_space, gym.spaces.Dict) and not own:
                    # RLlib's own module with action masks unpacks its batch when it is asked for values, as
                    # RLlib's GAE does.
                    with torch.no_grad():
                        module.compute_values(batch[name])
            if rows.states is not None and shared_data is not None:
                shared_data[f"_zero_padded_for_mid={name}"] = True
        return batch

    def _rows(self, name: str, module: TorchRLModule, fragments: list[Fragment]) -> TrainingRows:
        settings: dict[str, Any] = {"gamma": self.gamma, "lambda_": self.lambda_}
        device = next(module.parameters()).device
        fragments = alike([fragment.to(device) for fragment in fragments], name)
        if module.is_stateful():
            length = int(module.model_config["max_seq_len"])
            initial = map_tree(torch.as_tensor, module.get_initial_state())
            return sequence_rows(fragments, name, critic_of(module), initial, length=length, **settings)
        parts = [fragment.modules[name] for fragment in fragments]
        clean = self.rollouts is not None and self.rollouts.critic == "clean"
        return training_rows(parts, critic_of(module), clean_critic=clean, **settings)


def critic_of(module: TorchRLModule) -> Callable[..., Tensor]:
    """The values of a module, by observations, masks and, for recurrent ones, states."""
    plain = networks(module)

    def values(obs: Tensor, mask: Tensor | None, states: Tree | None = None) -> Tensor:
        batch = {Columns.OBS: observation_of(obs, mask, module.observation_space)}
        if plain is not None:
            return evaluated(plain[1], network_inputs(module, batch[Columns.OBS])[1]).squeeze(-1)
        found: Tensor = module.compute_values(
            batch if states is None else {**batch, Columns.STATE_IN: states}
        )
        return found

    return values


def _columns(rows: TrainingRows, module: TorchRLModule) -> dict[str, Any]:
    columns = {
        Columns.OBS: observation_of(rows.obs, rows.mask, module.observation_space),
        Columns.ACTIONS: rows.actions,
        Columns.ACTION_LOGP: rows.log_probs,
        Columns.ACTION_DIST_INPUTS: rows.inputs,
        Postprocessing.ADVANTAGES: rows.advantages,
        Postprocessing.VALUE_TARGETS: rows.value_targets,
    }
    if rows.clean_obs is not None:
        columns[CLEAN_OBS] = observation_of(rows.clean_obs, rows.mask, module.observation_space)
    if rows.path is not None:
        columns[PATH] = rows.path
    if rows.loss_mask is not None:
        columns[Columns.LOSS_MASK] = rows.loss_mask
        if rows.states is not None:
            columns |= {Columns.STATE_IN: rows.states, Columns.SEQ_LENS: rows.loss_mask.sum(1)}
    return columns
