"""What the fast env runner's agents do: exploring or not, at random, under masks, in turns, in boxes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action

from marl_aajr.core.distributions import env_action_map
from tests.rllib.fast_runs import (
    CIRCLE,
    SPREAD,
    TICTACTOE,
    config,
    fragment,
    masked,
    runner,
)


def test_without_exploration_the_most_likely_action_is_taken() -> None:
    part = fragment(runner(config()), explore=False).modules["agent"]
    assert torch.equal(part.actions, part.inputs.argmax(-1))


def test_random_actions_are_legal_and_not_the_networks() -> None:
    part = fragment(runner(masked(config("player", steps=40)), TICTACTOE), random_actions=True).modules[
        "player"
    ]
    assert part.mask is not None
    assert part.mask[:-1].gather(-1, part.actions[..., None]).all()
    assert len(part.actions.unique()) == 9


def test_masked_actions_are_never_taken() -> None:
    part = fragment(runner(masked(config("player", steps=40)), TICTACTOE)).modules["player"]
    assert part.mask is not None
    assert part.acts is not None
    legal = part.mask[:-1].gather(-1, part.actions[..., None])[..., 0]
    assert legal[part.acts[:-1]].all()
    assert (part.inputs[part.acts[:-1]] < -1e30).any()
    assert part.log_probs[part.acts[:-1]].isfinite().all()


def test_waiting_agents_have_their_turns_marked() -> None:
    part = fragment(runner(config("a", "b", "c"), CIRCLE, kwargs={"endings": "together"})).modules["b"]
    assert part.acts is not None
    assert part.acts[:4, 0, 0].tolist() == [False, True, False, False]
    assert part.acts[4:8, 0, 0].tolist() == [False, True, False, False]


@pytest.mark.parametrize(("normalize", "clip"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("high", [3.0, np.inf])
def test_box_actions_reach_the_environment_as_rllib_maps_them(
    normalize: bool, clip: bool, high: float
) -> None:
    low, top = np.array([-1.0, 0.5], np.float32), np.array([high, 2.0], np.float32)
    space = gym.spaces.Box(low, top)
    actions = torch.tensor([[-3.0, 0.1], [0.2, 5.0]])
    to_env = env_action_map(space, normalize=normalize, clip=clip, device=torch.device("cpu"))
    rllib: Any = (unsquash_action if normalize else clip_action) if normalize or clip else lambda a, _: a
    expected = np.stack([rllib(row, space) for row in actions.numpy()])
    np.testing.assert_array_equal(to_env(actions).numpy(), expected)


def test_continuous_actions_are_kept_as_the_module_chose_them() -> None:
    subject = runner(config(), SPREAD, kwargs={"continuous_actions": True})
    part = fragment(subject).modules["agent"]
    assert part.actions.shape == (10, 3, 4, 5)
    assert (part.actions.abs() > 1).any(), "Gaussian actions, not those clipped to the bounds"
    mean, log_std = part.inputs.chunk(2, -1)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(part.actions).sum(-1)
    torch.testing.assert_close(part.log_probs, expected)
