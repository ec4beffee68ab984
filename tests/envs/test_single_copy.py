"""One copy is a PettingZoo environment: its own tests, its registry, drawing, and refusals."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from marl_aajr.envs import NAMES
from marl_aajr.envs.single_copy import SingleCopy
from pettingzoo.test import parallel_api_test, parallel_seed_test

from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_games import game_of


def make(name: str, **options: Any) -> SingleCopy:
    env = importlib.import_module(f"marl_aajr.envs.{name}").parallel_env(**options)
    assert isinstance(env, SingleCopy)
    return env


@pytest.mark.parametrize("name", NAMES)
def test_pettingzoo_accepts_it(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(make(name), num_cycles=60)
        parallel_seed_test(lambda: make(name), num_cycles=30)


@pytest.mark.parametrize("name", NAMES)
def test_the_registry_makes_it(name: str) -> None:
    limit = "max_episode_steps" if name == "pogema_v0" else "max_cycles"
    env: Any = pettingzoo.make("parallel", f"marl_aajr/{name}", **{limit: 3})
    obs, _ = env.reset(seed=0)
    assert env.metadata["name"] == name
    assert all(env.observation_space(agent).contains(seen) for agent, seen in obs.items())
    for _ in range(3):
        *_, truncations, _ = env.step({agent: env.action_space(agent).sample() for agent in env.agents})
    assert all(truncations.values())
    assert env.agents == []


def test_registration_needs_neither_torch_nor_matplotlib() -> None:
    heavy = "('torch', 'matplotlib', 'mpe2')"
    code = f"import sys, marl_aajr.envs; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_a_seed_gives_the_episode_of_copy_0() -> None:
    batch = importlib.import_module("marl_aajr.envs.simple_tag_v3").batched_env(3)
    first = batch.reset(seed=12)
    obs, _ = make("simple_tag_v3").reset(seed=12)
    for agent, seen in obs.items():
        np.testing.assert_array_equal(seen, first[agent][0].numpy())


def test_resets_without_a_seed_continue_the_seed_before() -> None:
    one, other = make("simple_v3"), make("simple_v3")
    begins = [[env.reset(seed=4)[0]["agent_0"], env.reset()[0]["agent_0"]] for env in (one, other)]
    np.testing.assert_array_equal(begins[0], begins[1])
    assert not np.array_equal(begins[0][0], begins[0][1])
    assert not np.array_equal(make("simple_v3").reset()[0]["agent_0"], one.reset()[0]["agent_0"])


def test_the_last_observation_is_that_of_the_old_episode() -> None:
    env = make("simple_spread_v3", max_cycles=2)
    env.reset(seed=0)
    env.batch.world.velocity.fill_(0.3)
    stay = dict.fromkeys(env.agents, 0)
    before = env.step(stay)[0]["agent_0"][2:4]
    after = env.step(stay)[0]["agent_0"][2:4]
    np.testing.assert_allclose(after - before, 0.1 * 0.3 * 0.75, atol=0.02)
    assert env.state()[2:4] == pytest.approx(after)


@pytest.mark.parametrize(
    ("name", "options"), [*[(name, {}) for name in NAMES], ("simple_tag_v3", {"dynamic_rescaling": False})]
)
def test_it_draws_what_is_there(name: str, options: dict[str, Any]) -> None:
    env = make(name, render_mode="rgb_array", **options)
    env.reset(seed=0)
    first = env.render()
    assert first is not None
    assert first.dtype == np.uint8
    assert first.shape == (700, 700, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 2
    for _ in range(3):  # what is pushed moves one step later
        env.step(dict.fromkeys(env.agents, 1))
    assert not np.array_equal(first, env.render())
    assert make(name).render() is None


def test_agents_that_end_leave_before_the_others() -> None:
    """As in PettingZoo: with their last observation, and the episode goes on without their actions."""
    env = make("pogema_v0", num_agents=2, size=2, density=0.0, obs_radius=1)
    env.reset(seed=0)
    places = {"place": torch.tensor([[0], [3]]), "goal": torch.tensor([[1], [2]])}
    env.batch.set_state({**env.batch.get_state(), **places})
    obs, rewards, terminations, truncations, _ = env.step({"player_0": 4, "player_1": 0})
    assert rewards == {"player_0": 1.0, "player_1": 0.0}
    assert terminations == {"player_0": True, "player_1": False}
    assert not any(truncations.values())
    assert obs["player_0"][2].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]  # it is where it wanted to be
    assert env.agents == ["player_1"]
    obs, rewards, terminations, *_ = env.step({"player_1": 3})
    assert (list(obs), rewards, terminations) == (["player_1"], {"player_1": 1.0}, {"player_1": True})
    assert env.agents == []


def test_our_games_play_through_the_common_view() -> None:
    game = game_of(make("simple_tag_v3", max_cycles=2), name="ours")
    assert game.teams == {f"adversary_{i}": "adversary" for i in range(3)} | {"agent_0": "good"}
    game.reset(seed=0)
    stay = dict.fromkeys(game.possible_agents, 0)
    assert not game.step(stay).over
    assert game.step(stay).over


def test_it_travels_to_other_processes() -> None:
    env = make("simple_world_comm_v3")
    env.reset(seed=1)
    stay = dict.fromkeys(env.agents, 3)
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        saved = pickle.dumps(env)
        for _ in range(3):
            np.testing.assert_array_equal(env.step(stay)[0]["agent_0"], twin.step(stay)[0]["agent_0"])
        env = pickle.loads(saved)
    pickle.loads(pickle.dumps(make("simple_v3")))


def test_continuous_actions_are_clipped_as_in_mpe2() -> None:
    envs = [make("simple_v3", continuous_actions=True) for _ in range(2)]
    actions = [[0, 9, -3, 0.5, 0], [0, 1, 0, 0.5, 0]]
    for env, action in zip(envs, actions, strict=True):
        env.reset(seed=0)
        env.step({"agent_0": np.array(action, np.float32)})
    np.testing.assert_array_equal(envs[0].state(), envs[1].state())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("simple_spread_v3", {"N": 0}, "an integer N ≥ 1, got 0"),
        ("simple_spread_v3", {"local_ratio": 1.5}, r"local_ratio in \[0, 1\], got 1.5"),
        ("simple_spread_v3", {"num_agent_neighbors": 0}, "num_agent_neighbors"),
        ("simple_tag_v3", {"num_obstacles": -1}, "an integer num_obstacles ≥ 0"),
        ("simple_tag_v3", {"max_cycles": 2.5}, "max_cycles"),
        ("simple_world_comm_v3", {"num_food": 0}, "num_food"),
        ("simple_reference_v3", {"local_ratio": -1}, "local_ratio"),
        ("simple_v3", {"render_mode": "human"}, "render_mode 'rgb_array' or None, got 'human'"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(name, **options)


def test_bad_actions_are_named() -> None:
    env = make("simple_tag_v3")
    with pytest.raises(ValueError, match="call reset first"):
        env.step({})
    env.reset(seed=0)
    stay = dict.fromkeys(env.agents, 0)
    with pytest.raises(ValueError, match=r"action of 'adversary_1' in Discrete\(5\), got 5"):
        env.step({**stay, "adversary_1": 5})
    del stay["agent_0"]
    with pytest.raises(ValueError, match="none of 'agent_0'"):
        env.step(stay)


def test_a_view_shows_one_copy() -> None:
    batch = importlib.import_module("marl_aajr.envs.simple_v3").batched_env(2)
    with pytest.raises(ValueError, match="batch of one copy, got 2"):
        SingleCopy(batch, name="two")
    with pytest.raises(ValueError, match=r"torch\.float32 or torch\.float64"):
        importlib.import_module("marl_aajr.envs.simple_v3").batched_env(1, dtype=torch.float16)


def test_names_and_options_are_checked_by_the_common_resolver() -> None:
    spec = resolve("marl_aajr/simple_spread_v3", {"N": 4})
    assert len(spec.make().possible_agents) == 4
    with pytest.raises(ValueError, match=r"'n'.*it takes render_mode, max_cycles.*local_ratio"):
        resolve("marl_aajr/simple_spread_v3", {"n": 4})
    with pytest.raises(ValueError, match="an integer num_resources ≥ 2"):
        resolve("marl_aajr/congestion_v0", {"num_resources": 1}).make()
