from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from torch import nn

from marl_aajr.rllib.internals.learners import ResumableLearnerMixin, resumable_learner_class
from marl_aajr.rllib.plugin.robust_learner import REGULARIZERS_KEY
from marl_aajr.training.algorithm import build_config, check_machine
from marl_aajr.training.config import PPOSettings, make_config
from marl_aajr.training.policy_mapping import PolicyMapping, policy_mapping_of, warn_of_images
from tests.training.runs import tiny

CONNECT_FOUR = {"name": "pettingzoo.classic.connect_four_v3"}


@pytest.mark.parametrize(
    ("env", "policies", "modules"),
    [
        ("simple_spread_v3", "shared", {"agent_0": "agent", "agent_1": "agent", "agent_2": "agent"}),
        ("simple_spread_v3", "independent", {f"agent_{i}": f"agent_{i}" for i in range(3)}),
        ("simple_push_v3", "shared", {"adversary_0": "adversary", "agent_0": "agent"}),
        ("simple_crypto_v3", "shared", {"eve_0": "eve", "bob_0": "good", "alice_0": "good"}),
        ("pettingzoo.classic.connect_four_v3", "shared", {"player_0": "player_0", "player_1": "player_1"}),
    ],
)
def test_who_shares_a_module(env: str, policies: str, modules: dict[str, str]) -> None:
    config = make_config({"env": {"name": env}, "policies": policies})
    assert dict(policy_mapping_of(config).module_of) == modules


def test_sides_do_not_share_even_where_their_spaces_are_the_same() -> None:
    mapping = policy_mapping_of(make_config({"env": {"name": "simple_tag_v3", "kwargs": {"num_good": 2}}}))
    assert set(mapping.module_of.values()) == {"adversary", "agent"}
    assert list(mapping.modules) == ["adversary", "agent"]


def test_method_none_on_the_stock_runner_is_rllibs_own_learner() -> None:
    config = build_config(tiny(resources={"runner": "stock"}))
    assert config.learner_class is resumable_learner_class(PPOTorchLearner)
    changed = {name for name, value in vars(ResumableLearnerMixin).items() if callable(value)}
    # The two in the middle watch over the threads of other learners, and call RLlib's.
    assert changed == {"get_state", "build", "update", "set_state"}
    assert not config.learner_config_dict


def test_a_method_is_given_to_every_module() -> None:
    config = build_config(tiny(method={"name": "aajr"}, policies="independent"))
    assert issubclass(config.learner_class, PPOTorchLearner)
    assert set(config.learner_config_dict[REGULARIZERS_KEY]) == {"agent_0", "agent_1"}


def test_every_number_of_ppo_reaches_rllib() -> None:
    numbers: dict[str, Any] = {
        "lr": [[0, 0.5], [10, 0.25]],
        "gamma": 0.11,
        "gae_lambda": 0.12,
        "clip": 0.13,
        "vf_clip": 0.14,
        "vf_loss_coeff": 0.15,
        "entropy_coeff": 0.16,
        "kl_coeff": 0.17,
        "kl_target": 0.18,
        "epochs": 19,
        "minibatch_size": 20,
        "train_batch_size": 210,
        "grad_clip": 0.22,
    }
    assert set(numbers) == set(PPOSettings.model_fields)
    config = build_config(tiny(ppo=numbers))
    got = {
        "lr": config.lr,
        "gamma": config.gamma,
        "gae_lambda": config.lambda_,
        "clip": config.clip_param,
        "vf_clip": config.vf_clip_param,
        "vf_loss_coeff": config.vf_loss_coeff,
        "entropy_coeff": config.entropy_coeff,
        "kl_coeff": config.kl_coeff,
        "kl_target": config.kl_target,
        "epochs": config.num_epochs,
        "minibatch_size": config.minibatch_size,
        "train_batch_size": config.train_batch_size_per_learner,
        "grad_clip": config.grad_clip,
    }
    assert got == numbers
    assert config.use_kl_loss


def test_what_is_off_is_off() -> None:
    config = build_config(tiny())
    assert config.vf_clip_param == math.inf
    assert not config.use_kl_loss
    assert config.grad_clip is None


def test_batches_are_divided_among_learners() -> None:
    config = build_config(tiny(resources={"learners": 2}))
    assert (config.train_batch_size_per_learner, config.minibatch_size) == (50, 25)
    assert config.total_train_batch_size == 100


def test_the_network_is_the_one_that_was_asked_for() -> None:
    model = {"hidden": [5, 7], "activation": "relu", "initialization": "orthogonal"}
    specs = build_config(tiny(model=model)).rl_module_spec
    module = specs.rl_module_specs["agent"].build()
    actor = [*module.encoder.actor_encoder.net.mlp, *module.pi.net.mlp]
    assert [type(layer) for layer in actor] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [layer.out_features for layer in actor if isinstance(layer, nn.Linear)] == [5, 7, 5]
    for hidden in (actor[0], actor[2]):
        values = torch.linalg.svdvals(hidden.weight)
        assert values.tolist() == pytest.approx([2**0.5] * len(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": {"name": "simple_spread_v9"}}, r"unknown environment .*simple_spread_v3"),
        (
            {"env": {"name": "simple_spread_v3", "kwargs": {"M": 2}}},
            "expected arguments that simple_spread_v3",
        ),
        (
            {"env": CONNECT_FOUR, "method": {"name": "aajr"}},
            "expected floating-point observations for method aajr, got int8 for agent 'player_0'",
        ),
        (
            {"env": CONNECT_FOUR, "observation_filter": "mean_std"},
            "expected floating-point observations for observation_filter mean_std, got int8",
        ),
        ({"env": {"name": "pettingzoo.classic.rps_v2"}}, "expected Box observations"),
        ({"method": {"name": "aajr", "output": "mean"}}, "method aajr, module 'agent': "),
    ],
)
def test_what_cannot_be_played_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(tiny(**changes))


@pytest.mark.parametrize("name", ["gpus_per_learner", "gpus_per_env_runner"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_for_the_main_process_only(name: str) -> None:
    config = tiny(resources={name: 1})
    build_config(config)  # for another machine
    with pytest.raises(ValueError, match=f"expected a GPU in this machine for resources.{name} > 0"):
        check_machine(config.resources)
    check_machine(tiny(resources={name: 0.5, "learners": 1, "env_runners": 1}).resources)


def test_images_that_an_mlp_reads_deserve_a_line(caplog: pytest.LogCaptureFixture) -> None:
    image, vector = gym.spaces.Box(0, 255, (9, 8, 3), np.uint8), gym.spaces.Box(-1, 1, (4,), np.float32)
    masked = gym.spaces.Dict(observation=image, action_mask=gym.spaces.MultiBinary(2))
    spaces = {"a": image, "b": vector, "c": masked}
    actions, own = dict.fromkeys(spaces, gym.spaces.Discrete(2)), {agent: agent for agent in spaces}
    warn_of_images(PolicyMapping(spaces, actions, own, own))
    assert [message[:56] for message in caplog.messages] == [
        f"{agent}: an MLP reads images 9 x 8 x 3 as 216 numbers in a row"[:56] for agent in "ac"
    ]
