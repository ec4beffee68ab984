"""What the plug-in takes and what it refuses: learners, spaces, encoders, modules, settings."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from marl_aajr import AAJR, robustify
from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import KL
from marl_aajr.rllib.internals.modules import actor_forward
from marl_aajr.rllib.plugin.module_policy import module_distribution, module_policy
from marl_aajr.rllib.plugin.robust_learner import RobustLearnerMixin, robust_learner_class
from tests.networks import generator
from tests.rllib.learners import build_learner, ppo_batch, ppo_config
from tests.rllib.test_robustify import ACTIVE, trained


@pytest.mark.parametrize(
    ("action_space", "model"),
    [
        (gym.spaces.Discrete(3), DefaultModelConfig(fcnet_hiddens=[16], vf_share_layers=True)),
        (gym.spaces.MultiDiscrete([2, 3]), DefaultModelConfig(fcnet_hiddens=[16])),
        (gym.spaces.Box(-1, 1, (2,)), DefaultModelConfig(fcnet_hiddens=[16])),
        (gym.spaces.Box(-1, 1, (2,)), DefaultModelConfig(fcnet_hiddens=[16], free_log_std=True)),
    ],
    ids=["shared encoder", "multi-discrete", "gaussian", "free log std"],
)
def test_action_spaces_and_encoders(action_space: gym.Space, model: DefaultModelConfig) -> None:
    learner, results = trained(ACTIVE, "a", action_space=action_space, model=model)
    assert float(results["a"]["aajr"]["penalty"].peek()) > 0
    module = learner.module["a"].unwrapped()
    distribution = module_distribution(module)
    # Our pure functions against RLlib's own distribution, at the module's own outputs.
    batch = dict(ppo_batch(learner).policy_batches["a"])
    policy, obs = module_policy(module, batch, distribution)
    theirs = module.get_train_action_dist_cls().from_logits(policy(obs))
    actions = batch[Columns.ACTIONS]
    torch.testing.assert_close(distribution.log_prob(policy(obs), actions), theirs.logp(actions))
    torch.testing.assert_close(distribution.entropy(policy(obs)), theirs.entropy())


def test_the_actor_alone_computes_what_the_whole_module_does() -> None:
    learner, _ = trained(None, "a")
    module = learner.module["a"].unwrapped()
    batch = dict(ppo_batch(learner).policy_batches["a"])
    forward, reads_obs_only = actor_forward(module)
    assert reads_obs_only
    assert torch.equal(forward(batch), module.forward_train(batch)[Columns.ACTION_DIST_INPUTS])


def test_rllibs_action_masking_module_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pops the mask from its batch in place; masked actions stay masked at perturbed observations."""
    observation, actions = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(3)
    space = gym.spaces.Dict({"observations": observation, "action_mask": gym.spaces.Box(0, 1, (3,))})
    module = ActionMaskingTorchRLModule(
        observation_space=space, action_space=actions, model_config={"fcnet_hiddens": [8]}
    )
    rows = 6
    obs = torch.randn(rows, 4, generator=generator())
    mask = torch.tensor([[1.0, 1.0, 0.0]] * rows)
    batch = {Columns.OBS: obs, "action_mask": mask}  # as the GAE connector leaves it
    policy, flat = module_policy(module, batch, Categorical(3))
    assert torch.equal(flat, obs)
    trajectory = ascend(
        policy.select(torch.arange(3)),
        flat[:3],
        KL(),
        ACTIVE.perturbations(0),
        steps=2,
        step_size=0.1,
        generator=generator(),
    )
    perturbed = policy.select(torch.arange(3))(flat[:3] + trajectory.deltas[-1])
    assert (perturbed.argmax(-1) < 2).all()
    assert (perturbed[:, 2] < -1e30).all()
    assert policy.repeat(2)(torch.cat([flat, flat])).shape == (12, 3)


def test_learner_classes_of_the_users_own_are_extended_not_replaced() -> None:
    class MyLearner(PPOTorchLearner):
        pass

    config = ppo_config("a").learners(learner_class=MyLearner, learner_config_dict={"mine": 1})
    config = robustify(config, ACTIVE)
    assert issubclass(config.learner_class, MyLearner)
    assert config.learner_config_dict["mine"] == 1
    assert robust_learner_class(config.learner_class) is config.learner_class


def test_the_configuration_travels_to_remote_learners() -> None:
    config = robustify(ppo_config("a"), ACTIVE)
    copy = pickle.loads(cloudpickle.dumps(config.learner_class))
    assert issubclass(copy, RobustLearnerMixin)
    assert issubclass(copy, PPOTorchLearner)


class NotTorch(Learner):
    pass


@pytest.mark.parametrize(
    ("configure", "regularizer", "message"),
    [
        (lambda c: c, {"c": ACTIVE}, "expected a module id out of a, b, got 'c'; declare it"),
        (lambda c: c, {}, "expected a regularizer or"),
        (lambda c: c, "aajr", "expected a regularizer or"),
        (lambda c: c, {"a": "aajr"}, "expected a regularizer for module 'a', got 'aajr'"),
        (lambda c: c.learners(learner_class=NotTorch), ACTIVE, "derived from TorchLearner, got .*NotTorch"),
        (type, ACTIVE, "expected a configuration of RLlib, such as PPOConfig"),
        (
            lambda c: c.api_stack(
                enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
            ),
            ACTIVE,
            "expected RLlib's new API stack",
        ),
    ],
)
def test_bad_input_is_refused(configure: Any, regularizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustify(configure(ppo_config("a", "b")), regularizer)


def test_integer_observations_are_refused() -> None:
    learner, _ = trained(None, "a")
    module = learner.module["a"].unwrapped()
    with pytest.raises(ValueError, match=r"expected observations with floating-point.*torch.uint8"):
        module_policy(module, {Columns.OBS: torch.zeros(2, 4, dtype=torch.uint8)}, Categorical(3))


def test_settings_that_do_not_fit_the_module_are_refused_when_the_learner_is_built() -> None:
    config = robustify(ppo_config("a"), AAJR(output="probs"))
    with pytest.raises(ValueError, match="for a Gaussian policy, got 'probs'"):
        build_learner(config, action_space=gym.spaces.Box(-1, 1, (2,)))
