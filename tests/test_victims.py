"""A victim plays as it was trained, survives its files to the last bit, and says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.models.configs import FreeLogStdMLPHeadConfig, MLPHeadConfig
from ray.rllib.utils.filter import MeanStdFilter
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from torch import Tensor, nn

from marl_aajr.victims import (
    ChannelsFirst,
    ChannelsLast,
    ClipLogStd,
    FreeLogStd,
    ObservationFilter,
    Victim,
)
from tests.networks import generator

BOX = gym.spaces.Box(-np.inf, np.inf, (6,), np.float32)
BOUNDED = gym.spaces.Box(np.array([-2.0, -0.7], np.float32), np.array([-0.1, 3.3], np.float32))
ACTIONS: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(5),
    "multi": gym.spaces.MultiDiscrete([2, 3]),
    "box": BOUNDED,
}
OUTPUTS = {"discrete": 5, "multi": 5, "box": 4}


def network(outputs: int, *, features: int = 6, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, outputs))


def victim(kind: str = "discrete", **settings: Any) -> Victim:
    """Two agents who share a module."""
    arguments: dict[str, Any] = {
        "module_of": {"a_0": "shared", "a_1": "shared"},
        "modules": {"shared": network(OUTPUTS[kind])},
        "observation_spaces": {"a_0": BOX, "a_1": BOX},
        "action_spaces": {"a_0": ACTIONS[kind], "a_1": ACTIONS[kind]},
        "env_name": "simple_spread_v3",
        "env_kwargs": {"N": 3},
    }
    return Victim(**(arguments | settings))


def learned_filter(seed: int = 0, shape: tuple[int, ...] = (6,)) -> MeanStdFilter:
    seen = MeanStdFilter(shape)
    rng = np.random.default_rng(seed)
    scale = rng.uniform(1e-3, 50, shape)
    for _ in range(300):
        seen((rng.normal(0.3, 1, shape) * scale).astype(np.float32))
    return seen


def frozen(learned: MeanStdFilter) -> ObservationFilter:
    stats = learned.running_stats
    return ObservationFilter(
        mean=torch.from_numpy(stats.mean), std=torch.from_numpy(stats.std), clip=learned.clip
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

    def test_greedy_is_the_mode_and_sampling_follows_the_probabilities(self) -> None:
        team = victim("discrete")
        outputs = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1]).log().expand(4000, 5)
        assert (team.greedy("a_0", outputs) == 1).all()
        drawn = team.sample("a_0", outputs, generator=generator())
        assert (drawn == 1).float().mean().item() == pytest.approx(0.4, abs=0.03)

    def test_a_forbidden_action_is_never_taken(self) -> None:
        team = victim("discrete", modules={"shared": nn.Sequential(FixedLogits())})
        mask = torch.tensor([[True, True, False, True, True]]).expand(300, 5)
        outputs = team.policy("a_0", action_mask=mask)(torch.zeros(300, 6))
        assert (team.greedy("a_0", outputs) == 1).all()
        assert 2 not in team.sample("a_0", outputs, generator=generator())

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


class FixedLogits(nn.Module):
    """Likes the third action best."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tensor([0.0, 2.0, 3.0, 1.0, 0.0]).expand(len(obs), 5)


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ACTIONS)
    def test_is_exact(self, kind: str, tmp_path: Path) -> None:
        team = victim(kind, filters={"a_0": frozen(learned_filter()), "a_1": frozen(learned_filter(1))})
        loaded = Victim.load(team.save(tmp_path / "run" / "victim"))
        obs = 10 * torch.randn(64, 6, generator=generator())
        for agent in team.agents:
            outputs = [v.policy(agent)(v.inputs(agent, obs)) for v in (team, loaded)]
            assert torch.equal(*outputs)
            assert torch.equal(*[v.greedy(agent, outputs[0]) for v in (team, loaded)])
        assert loaded.observation_spaces == team.observation_spaces
        assert loaded.action_spaces == team.action_spaces
        assert loaded.module_of == team.module_of
        assert list(loaded.module_of) == list(team.module_of), "the order of the agents is part of it"
        assert (loaded.env_name, loaded.env_kwargs) == ("simple_spread_v3", {"N": 3})

    def test_every_kind_of_layer(self, tmp_path: Path) -> None:
        image = gym.spaces.Box(0, 1, (8, 8, 3), np.float32)
        tall = nn.Sequential(
            ChannelsFirst(),
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.ELU(0.5),
            nn.Sequential(
                nn.Conv2d(4, 4, (2, 1), bias=False), nn.LeakyReLU(0.2), nn.GELU(approximate="tanh")
            ),
            ChannelsLast(),
            nn.Flatten(),
            nn.LazyLinear(7),
            nn.LayerNorm(7, eps=1e-3),
            nn.SiLU(),
            nn.Softplus(beta=2),
            nn.Identity(),
            nn.Sigmoid(),
            nn.ReLU(),
            nn.Tanh(),
            nn.Linear(7, 2),
            FreeLogStd(2, clip=20.0),
            ClipLogStd(0.5),
        )
        tall(torch.zeros(1, 8, 8, 3))
        tall[-2].log_std.data = torch.tensor([0.3, -9.0])
        team = Victim(
            module_of={"a": "m"},
            modules={"m": tall},
            observation_spaces={"a": image},
            action_spaces={"a": BOUNDED},
        )
        loaded = Victim.load(team.save(tmp_path / "victim"))
        obs = torch.rand(5, 8, 8, 3, generator=generator())
        expected = tall(obs)
        assert torch.equal(loaded.policy("a")(loaded.inputs("a", obs)), expected)
        assert torch.equal(expected[:, 2:], torch.tensor([[0.3, -0.5]]).expand(5, 2))

    def test_log_std_layers_are_rllibs_heads(self) -> None:
        size: dict[str, Any] = {"input_dims": [3], "output_layer_dim": 4, "hidden_layer_dims": []}
        x = 100 * torch.randn(9, 3, generator=generator())
        head = MLPHeadConfig(**size, clip_log_std=True, log_std_clip_param=20.0).build("torch")
        assert torch.equal(ClipLogStd(20.0)(head.net(x)), head(x))
        free = FreeLogStdMLPHeadConfig(**size, clip_log_std=True, log_std_clip_param=1.0).build("torch")
        free.log_std.data = torch.tensor([3.0, -0.2])
        ours = FreeLogStd(2, clip=1.0)
        ours.log_std.data = free.log_std.data
        assert torch.equal(ours(free.net(x)), free(x))

    @pytest.mark.parametrize(
        "space",
        [
            gym.spaces.Box(-np.inf, np.array([0.1, 3.0], np.float32), (2,), np.float32),
            gym.spaces.Box(np.float64(-0.1), 1 / 3, (2, 3), np.float64),
            gym.spaces.Box(0, 255, (2, 2, 3), np.uint8),
        ],
    )
    def test_of_spaces_is_exact(self, space: gym.spaces.Box, tmp_path: Path) -> None:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(space.shape)), 5))
        team = Victim(
            module_of={"a": "m"},
            modules={"m": flat},
            observation_spaces={"a": space},
            action_spaces={"a": ACTIONS["discrete"]},
        )
        assert Victim.load(team.save(tmp_path / "v")).observation_spaces["a"] == space

    def test_loading_draws_no_global_random_numbers(self, tmp_path: Path) -> None:
        folder = victim().save(tmp_path / "victim")
        before = torch.get_rng_state()
        Victim.load(folder)
        assert torch.equal(torch.get_rng_state(), before)

    def test_saving_again_replaces_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        folder = tmp_path / "victim"
        victim().save(folder)
        second = network(5, seed=1)
        victim(modules={"shared": second}).save(folder)
        loaded = Victim.load(folder)
        weights = [next(network.parameters()) for network in (loaded.modules["shared"], second)]
        assert torch.equal(*weights)
        assert os.listdir(tmp_path) == ["victim"]
        assert sorted(os.listdir(folder)) == ["victim.json", "victim.safetensors"]

    def test_the_json_is_for_people(self, tmp_path: Path) -> None:
        text = (victim().save(tmp_path / "v") / "victim.json").read_text()
        description = json.loads(text, parse_constant=pytest.fail)
        assert description["modules"]["shared"][0] == {
            "layer": "Linear",
            "in_features": 6,
            "out_features": 16,
            "bias": True,
        }
        assert description["agents"][0]["observation_space"]["low"] == "-inf"

    def test_pickles_too(self) -> None:
        team = victim()
        obs = torch.randn(3, 6, generator=generator())
        assert torch.equal(pickle.loads(pickle.dumps(team)).policy("a_0")(obs), team.policy("a_0")(obs))


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"expected a saved victim in .*nowhere.*finish the training"):
            Victim.load(tmp_path / "nowhere")

    def test_foreign_json(self, tmp_path: Path) -> None:
        (tmp_path / "victim.json").write_text('{"name": "something else"}')
        with pytest.raises(ValueError, match="something else; name another folder"):
            Victim.load(tmp_path)

    def test_newer_version(self, tmp_path: Path) -> None:
        edit(victim().save(tmp_path / "v"), version=99)
        with pytest.raises(ValueError, match=r"expected version 1 .* got 99"):
            Victim.load(tmp_path / "v")

    @pytest.mark.parametrize("damage", ["", "{", "\udcff"])
    def test_damaged_json(self, damage: str, tmp_path: Path) -> None:
        path = victim().save(tmp_path / "v") / "victim.json"
        path.write_bytes(damage.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=r"victim\.json is damaged"):
            Victim.load(tmp_path / "v")

    def test_one_flipped_bit(self, tmp_path: Path) -> None:
        path = victim().save(tmp_path / "v") / "victim.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"victim\.safetensors is damaged: its checksum"):
            Victim.load(tmp_path / "v")

    def test_numbers_that_are_no_safetensors(self, tmp_path: Path) -> None:
        folder = victim().save(tmp_path / "v")
        (folder / "victim.safetensors").write_bytes(b"not numbers")
        import hashlib

        edit(folder, sha256=hashlib.sha256(b"not numbers").hexdigest())
        with pytest.raises(ValueError, match=r"victim\.safetensors is damaged"):
            Victim.load(folder)

    def test_missing_numbers(self, tmp_path: Path) -> None:
        folder = victim().save(tmp_path / "v")
        (folder / "victim.safetensors").unlink()
        with pytest.raises(ValueError, match="no such file; save the victim again"):
            Victim.load(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"modules": {"shared": [{"layer": "Pickle"}]}}, "got 'Pickle'"),
            ({"modules": {"shared": [{"layer": "Linear", "size": 3}]}}, "arguments of layer Linear"),
            ({"modules": {"shared": [{"layer": "Tanh"}]}}, "damaged"),
            ({"agents": [{"agent": "a_0"}]}, "lacks 'module'"),
            ({"agents": 3}, "damaged"),
        ],
    )
    def test_json_that_was_edited(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        edit(victim().save(tmp_path / "v"), **change)
        with pytest.raises(ValueError, match=message) as caught:
            Victim.load(tmp_path / "v")
        assert "\n" not in str(caught.value)

    def test_a_folder_of_something_else_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ValueError, match=r"got a folder with thesis\.txt; choose another"):
            victim().save(tmp_path)
        with pytest.raises(ValueError, match="got a file; choose another"):
            victim().save(tmp_path / "thesis.txt")
        assert os.listdir(tmp_path) == ["thesis.txt"]

    def test_a_layer_that_cannot_be_described_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"got tests\.test_victims\.FixedLogits"):
            victim(modules={"shared": FixedLogits()}).save(tmp_path / "v")
        assert os.listdir(tmp_path) == []


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "victim.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestConstruction:
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
