from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from marl_aajr.core.distributions import Categorical
from marl_aajr.rllib.internals.modules import trained_actor
from marl_aajr.rllib.lean.plain_gradient import plain_gradient
from marl_aajr.rllib.networks import FlatActorCritic, check_observation_space, needs_flat_module
from marl_aajr.rllib.plugin.module_policy import module_policy
from tests.rllib.learners import build_learner, ppo_config

MODEL = {"fcnet_hiddens": [8]}
MASKED = gym.spaces.Dict({"observation": Box(0, 1, (3, 2), np.int8), "action_mask": Box(0, 1, (4,), np.int8)})


def build(space: gym.Space[Any], actions: gym.Space[Any], **changes: Any) -> Any:
    inference_only = changes.pop("inference_only", False)
    return RLModuleSpec(
        module_class=FlatActorCritic,
        observation_space=space,
        action_space=actions,
        model_config=MODEL | changes,
        inference_only=inference_only,
    ).build()


def batch() -> dict[str, Any]:
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.int8)
    return {Columns.OBS: {"observation": torch.ones(2, 3, 2, dtype=torch.int8), "action_mask": mask}}


def test_forbidden_actions_are_never_taken() -> None:
    module = build(MASKED, Discrete(4))
    logits = module.forward_exploration(batch())[Columns.ACTION_DIST_INPUTS]
    probabilities = logits.softmax(-1)
    assert torch.equal(probabilities == 0, batch()[Columns.OBS]["action_mask"] == 0)
    distribution = module.get_train_action_dist_cls().from_logits(logits)
    assert torch.isfinite(distribution.entropy()).all()
    assert torch.isfinite(distribution.kl(distribution)).all()


def test_the_batch_is_left_as_it_is() -> None:
    module, given = build(MASKED, Discrete(4)), batch()
    module.forward_train(given)
    assert set(given[Columns.OBS]) == {"observation", "action_mask"}


def test_values_have_one_number_a_row() -> None:
    assert build(MASKED, Discrete(4)).compute_values(batch()).shape == (2,)


def test_runners_get_a_module_without_the_critic_and_its_weights() -> None:
    learner, runner = build(MASKED, Discrete(4)), build(MASKED, Discrete(4), inference_only=True)
    assert not hasattr(runner, "critic")
    runner.set_state(learner.get_state(inference_only=True))
    key = Columns.ACTION_DIST_INPUTS
    assert torch.equal(runner.forward_inference(batch())[key], learner.forward_inference(batch())[key])


@pytest.mark.parametrize("free", [False, True])
def test_box_actions_get_means_and_log_deviations(free: bool) -> None:
    module = build(Box(-1, 1, (2, 2)), Box(-1, 1, (3,)), free_log_std=free)
    obs = torch.randn(5, 2, 2)
    outputs = module.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    assert outputs.shape == (5, 6)
    assert bool((outputs[:, 3:] == outputs[:1, 3:]).all()) is free


@pytest.mark.parametrize("initializer", ["orthogonal_", None])
def test_hidden_layers_are_initialised_as_asked(initializer: str | None) -> None:
    gain = {"fcnet_kernel_initializer_kwargs": {"gain": 2**0.5}} if initializer else {}
    module = build(MASKED, Discrete(4), fcnet_kernel_initializer=initializer, **gain)
    hidden, head = [layer for layer in module.actor if isinstance(layer, nn.Linear)]
    values = torch.linalg.svdvals(hidden.weight)
    assert torch.allclose(values, torch.tensor(2.0).sqrt()) is (initializer is not None)
    assert head.bias.any()


@pytest.mark.parametrize(
    ("space", "flat"),
    [
        (Box(-1, 1, (4,)), False),
        (Box(-1, 1, (4, 2)), True),
        (Box(0, 1, (4,), np.int8), True),
        (MASKED, True),
    ],
)
def test_which_observations_rllibs_module_takes(space: gym.Space[Any], flat: bool) -> None:
    assert needs_flat_module(space) is flat
    check_observation_space("a", space)


@pytest.mark.parametrize(
    "space", [Discrete(3), gym.spaces.Dict({"x": Box(-1, 1, (4,)), "y": Box(-1, 1, (4,))})]
)
def test_other_observations_are_refused_by_agent(space: gym.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected Box observations, .* for agent 'ann'; flatten it"):
        check_observation_space("ann", space)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_lstm": True, "head_fcnet_hiddens": [4]}, "got head_fcnet_hiddens, use_lstm; .* plain MLPs"),
        ({"fcnet_activation": "sine"}, "expected fcnet_activation out of .* got 'sine'"),
    ],
)
def test_settings_that_it_has_no_use_for_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(MASKED, Discrete(4), **setting)


def test_only_layers_behind_a_flatten_are_taken_for_the_actor() -> None:
    """A subclass with an actor of its own is trained as it plays."""
    module = build(Box(-1, 1, (4,), np.float32), Discrete(3))
    assert module.flat_actor is not None
    module.actor = nn.Sequential(nn.LayerNorm(4), *list(module.actor)[1:])
    assert module.flat_actor is None


def hook_on_the_head(module: Any) -> None:
    module.pi.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def encoder_of_its_own(module: Any) -> None:
    class Doubling(type(module.encoder.actor_encoder)):  # type: ignore[misc]
        def _forward(self, inputs: Any, **_: Any) -> Any:
            return super()._forward(inputs | {Columns.OBS: 2 * inputs[Columns.OBS]})

    module.encoder.actor_encoder.__class__ = Doubling


def forward_train_of_its_own(module: Any) -> None:
    class Doubling(type(module)):  # type: ignore[misc]
        def forward_train(self, batch: Any, **kwargs: Any) -> Any:
            out = super().forward_train(batch, **kwargs)
            return out | {Columns.ACTION_DIST_INPUTS: 2 * out[Columns.ACTION_DIST_INPUTS]}

    module.__class__ = Doubling


@pytest.mark.parametrize("change", [hook_on_the_head, encoder_of_its_own, forward_train_of_its_own])
def test_a_module_that_is_more_than_its_layers_is_not_taken_for_them(change: Callable[[Any], None]) -> None:
    module = build_learner(ppo_config("a")).module["a"].unwrapped()
    assert trained_actor(module) is not None
    change(module)
    assert trained_actor(module) is None
    batch = {Columns.OBS: torch.randn(5, 4)}
    policy, obs = module_policy(module, batch, Categorical(3), layers=trained_actor(module))
    torch.testing.assert_close(policy(obs), module.forward_train(batch)[Columns.ACTION_DIST_INPUTS])


def test_actor_and_critic_with_common_layers_are_left_to_autograd() -> None:
    def written(*networks: nn.Sequential) -> object:
        actor, critic = networks
        buffers: dict[torch.Tensor, torch.Tensor] = {p: p.clone() for n in networks for p in n.parameters()}
        return plain_gradient((actor, critic), Categorical(3), buffers)

    body = [nn.Linear(4, 8), nn.Tanh()]
    assert written(nn.Sequential(*body, nn.Linear(8, 3)), nn.Sequential(*body, nn.Linear(8, 1))) is None
    assert written(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 1))) is not None
