"""A victim plays as it was trained: RLlib's filter and action mapping, to the last bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from torch import nn

from marl_aajr.victims import (
    ObservationFilter,
)
from tests.networks import generator
from tests.victims.teams import (
    ACTIONS,
    BOUNDED,
    BOX,
    FixedLogits,
    frozen,
    learned_filter,
    network,
    victim,
)


class TestFilter:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_rllibs_filter_to_the_last_bit(self, dtype: type) -> None:
        learned = learned_filter()
        batch: Any = (np.random.default_rng(1).normal(size=(500, 6)) * 40).astype(dtype)
        expected = np.stack([learned(row, update=False) for row in batch])
        filtered = frozen(learned)(torch.from_numpy(batch)).numpy()
        assert filtered.dtype == expected.dtype
        np.testing.assert_array_equal(filtered, expected)
        assert (abs(expected) == 10).any(), "the clip must have been at work"

    def test_a_feature_that_never_moved_is_divided_by_the_small_number(self) -> None:
        constant = ObservationFilter(mean=torch.zeros(1), std=torch.zeros(1), clip=None)
        assert constant(torch.tensor([[1e-6]])).item() == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"mean": torch.zeros(2), "std": torch.ones(3)}, "one shape"),
            ({"mean": torch.zeros(2), "std": torch.tensor([1.0, torch.nan])}, "finite"),
            ({"mean": torch.zeros(2), "std": torch.ones(2), "clip": 0.0}, "clip > 0"),
        ],
    )
    def test_refuses(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ObservationFilter(**settings)


class TestActions:
    def test_bounded_boxes_are_unsquashed_and_clipped_as_rllib_does(self) -> None:
        team = victim("box")
        outputs = 2 * torch.randn(200, 4, generator=generator())
        expected = np.stack([unsquash_action(a, BOUNDED) for a in outputs[:, :2].numpy()])
        np.testing.assert_array_equal(team.greedy("a_0", outputs).numpy(), expected)
        assert (expected == BOUNDED.high).any()

    def test_clipped_only_where_normalisation_is_off(self) -> None:
        team = victim("box", normalize_actions=False, clip_actions=True)
        outputs = 2 * torch.randn(200, 4, generator=generator())
        expected = np.stack([clip_action(a, BOUNDED) for a in outputs[:, :2].numpy()])
        np.testing.assert_array_equal(team.greedy("a_0", outputs).numpy(), expected)

    def test_untouched_where_rllib_touches_nothing(self) -> None:
        outputs = 5 * torch.randn(20, 4, generator=generator())
        off = victim("box", normalize_actions=False)
        assert torch.equal(off.greedy("a_0", outputs), outputs[:, :2])
        unbounded = gym.spaces.Box(-np.inf, np.inf, (2,))
        wide = victim("box", action_spaces={"a_0": unbounded, "a_1": unbounded})
        assert torch.equal(wide.greedy("a_0", outputs), outputs[:, :2])

    def test_greedy_is_the_mode(self) -> None:
        team = victim("discrete")
        outputs = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1]).log().expand(4000, 5)
        assert (team.greedy("a_0", outputs) == 1).all()

    def test_a_forbidden_action_is_never_taken(self) -> None:
        team = victim("discrete", modules={"shared": nn.Sequential(FixedLogits())})
        mask = torch.tensor([[True, True, False, True, True]]).expand(300, 5)
        outputs = team.policy("a_0", action_mask=mask)(torch.zeros(300, 6))
        assert (team.greedy("a_0", outputs) == 1).all()

    def test_the_mask_follows_the_rows(self) -> None:
        mask = torch.rand(4, 5, generator=generator()) < 0.5
        mask[:, 0] = True
        policy = victim("discrete").policy("a_0", action_mask=mask)
        obs = torch.randn(4, 6, generator=generator())
        index = torch.tensor([2, 0])
        torch.testing.assert_close(policy.select(index)(obs[index]), policy(obs)[index])
        torch.testing.assert_close(policy.repeat(2)(torch.cat([obs, obs])), policy(obs).repeat(2, 1))

    def test_plays_pettingzoo_observations(self) -> None:
        team = victim("discrete", filters={"a_0": frozen(learned_filter()), "a_1": None})
        seen = np.random.default_rng(0).normal(size=6).astype(np.float32)
        mask = np.array([0, 0, 0, 1, 0], np.int8)
        actions = team.act({"a_0": seen, "a_1": {"observation": seen, "action_mask": mask}})
        filtered = learned_filter()(seen, update=False)
        expected = team.modules["shared"](torch.from_numpy(filtered)).argmax().item()
        assert actions == {"a_0": expected, "a_1": 3}
        assert all(ACTIONS["discrete"].contains(action) for action in actions.values())


class TestConstruction:
    def test_an_agent_that_it_does_not_play_is_named(self) -> None:
        team = victim()
        with pytest.raises(ValueError, match=r"expected agents in obs out of .*; got 'nobody'"):
            team.act({"nobody": np.zeros(6, np.float32)})

    def test_freezes_a_copy(self) -> None:
        module = network(5)
        module.append(nn.Dropout())
        team = victim(modules={"shared": module})
        next(module.parameters()).data.zero_()
        copy = team.modules["shared"]
        assert not copy.training
        assert not any(p.requires_grad for p in copy.parameters())
        assert next(copy.parameters()).abs().sum() > 0
        assert module.training, "the user's module stays as it was"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"module_of": {}}, "at least one agent"),
            ({"module_of": {"a_0": "other"}}, "a module for 'a_0' out of shared, got 'other'"),
            ({"observation_spaces": {"a_0": BOX}}, "the observation space of 'a_1'"),
            ({"action_spaces": {"a_0": ACTIONS["discrete"], "a_1": BOUNDED}}, "give them two modules"),
            (
                {"observation_spaces": dict.fromkeys(["a_0", "a_1"], gym.spaces.Discrete(3))},
                "a Box observation",
            ),
            ({"action_spaces": dict.fromkeys(["a_0", "a_1"], gym.spaces.Text(3))}, "Discrete, MultiDiscrete"),
            (
                {"action_spaces": dict.fromkeys(["a_0", "a_1"], gym.spaces.Box(0, 3, (2,), np.int64))},
                "float Box actions",
            ),
            ({"modules": {"shared": network(4)}}, "expected module 'shared' to give 5 outputs"),
            ({"modules": {"shared": network(5, features=3)}}, "to take observations"),
            ({"modules": {"shared": network(5), "idle": network(5)}}, "none for idle"),
            ({"filters": {"b": frozen(learned_filter())}}, "one for b"),
            ({"filters": {"a_0": frozen(learned_filter(shape=(3,)))}}, "a filter of shape"),
        ],
    )
    def test_refuses(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            victim(**settings)

    def test_refuses_masks_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"bool action mask \[B, 5\]"):
            victim().policy("a_0", action_mask=torch.ones(2, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="no action mask for Box"):
            victim("box").policy("a_0", action_mask=torch.ones(2, 4, dtype=torch.bool))
