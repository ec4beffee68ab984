"""A victim survives its files to the last bit, and damaged or foreign files say what is wrong."""

from __future__ import annotations

import hashlib
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
from torch import nn

from marl_aajr.victims import (
    ChannelsFirst,
    ChannelsLast,
    ClipLogStd,
    FreeLogStd,
    Victim,
)
from tests.networks import generator
from tests.victims.teams import (
    ACTIONS,
    BOUNDED,
    FixedLogits,
    frozen,
    learned_filter,
    network,
    victim,
)


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
        with pytest.raises(ValueError, match=r"got tests\.victims\.teams\.FixedLogits"):
            victim(modules={"shared": FixedLogits()}).save(tmp_path / "v")
        assert os.listdir(tmp_path) == []


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "victim.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
