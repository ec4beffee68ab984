"""Real PPO learners and batches without Ray: what a minibatch update does, isolated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModule, RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

OBS = gym.spaces.Box(-10, 10, (4,), np.float32)
ACTIONS = gym.spaces.Discrete(3)
Configure = Callable[[PPOConfig], Any]


def ppo_config(*modules: str, seed: int = 0, **training: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "lr": 1e-2,
        "minibatch_size": 32,
        "num_epochs": 2,
        "vf_clip_param": 1e9,
        **training,
    }
    return (
        PPOConfig()
        .multi_agent(policies=set(modules or ("a",)), policy_mapping_fn=lambda agent, *_, **__: agent)
        .debugging(seed=seed)
        .training(**settings)
    )


def build_learner(
    config: PPOConfig,
    *,
    obs_space: gym.Space = OBS,
    action_space: gym.Space = ACTIONS,
    model: DefaultModelConfig | None = None,
    module: type[RLModule] | None = None,
    seed: int = 0,
    index: int = 0,
) -> Learner:
    torch.manual_seed(seed)
    model = model or DefaultModelConfig(fcnet_hiddens=[16], fcnet_activation="tanh", vf_share_layers=False)
    spec = MultiRLModuleSpec(
        rl_module_specs={
            module_id: RLModuleSpec(
                module_class=module or config.get_default_rl_module_spec().module_class,
                observation_space=obs_space,
                action_space=action_space,
                model_config=model,
            )
            for module_id in sorted(config.policies)
        }
    )
    learner = config.learner_class(config=config, module_spec=spec)
    # As LearnerGroup does, for learner `index` of several.
    learner._set_learner_index_and_placement_group(learner_index=index, placement_group=None)
    learner.build()
    return learner


def ppo_batch(
    learner: Learner, *, rows: int = 64, seed: int = 0, mask: np.ndarray | None = None
) -> MultiAgentBatch:
    """Random observations, the actions that the learner's own modules would take there."""
    rng = np.random.default_rng(seed)
    batches = {}
    for module_id in sorted(learner.module.keys()):
        module = learner.module[module_id].unwrapped()
        obs = torch.from_numpy(rng.normal(size=(rows, *module.observation_space.shape)).astype(np.float32))
        with torch.no_grad():
            seen = {Columns.OBS: obs.to(learner.device)}
            inputs = module.forward_exploration(seen)[Columns.ACTION_DIST_INPUTS].cpu()
        torch.manual_seed(seed)
        distribution = module.get_exploration_action_dist_cls().from_logits(inputs)
        actions = distribution.sample()
        columns = {
            Columns.OBS: obs,
            Columns.ACTIONS: actions,
            Columns.ACTION_LOGP: distribution.logp(actions),
            Columns.ACTION_DIST_INPUTS: inputs,
            Postprocessing.ADVANTAGES: torch.from_numpy(rng.normal(size=rows).astype(np.float32)),
            Postprocessing.VALUE_TARGETS: torch.from_numpy(rng.normal(size=rows).astype(np.float32)),
        }
        if mask is not None:
            columns[Columns.LOSS_MASK] = torch.from_numpy(mask)
        batches[module_id] = SampleBatch(columns)
    return MultiAgentBatch(batches, env_steps=rows)


def update(learner: Learner, batch: MultiAgentBatch, *, timestep: int = 0) -> Any:
    torch.manual_seed(0)
    return learner.update(
        batch=batch,
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: timestep},
        num_epochs=learner.config.num_epochs,
        minibatch_size=learner.config.minibatch_size,
        shuffle_batch_per_epoch=False,
    )


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {
        f"{module_id}/{name}": parameter.detach().clone()
        for module_id in sorted(learner.module.keys())
        for name, parameter in learner.module[module_id].unwrapped().named_parameters()
    }


def sample_and_update(config: PPOConfig) -> tuple[Learner, Any]:
    """What an iteration of RLlib's PPO does in one process: its env runner, its connectors, its learner."""
    runner = MultiAgentEnvRunner(config)
    learner = config.build_learner(spaces=runner.get_spaces())
    episodes = runner.sample(num_timesteps=config.total_train_batch_size)
    settings = {"num_epochs": config.num_epochs, "minibatch_size": config.minibatch_size}
    return learner, learner.update(
        episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0}, **settings
    )
