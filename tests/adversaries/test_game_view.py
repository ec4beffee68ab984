"""Games with victims by name, and one copy of them for PettingZoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from marl_aajr.adversaries.agent_game import batched_env, parallel_env
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import fingerprint
from tests.adversaries.test_agent_game import each_its_own
from tests.evaluation.players import moves


def threat(spec: EnvironmentSpec, folder: Path, **settings: Any) -> dict[str, Any]:
    victim = each_its_own(spec)
    victim.save(folder)
    where = {"env": spec.name, "env_kwargs": dict(spec.kwargs), "victim": str(folder)}
    return where | {"digest": fingerprint(victim), "kind": "opponent"} | settings


@pytest.mark.parametrize(
    ("name", "team", "opponents"),
    [
        ("simple_tag_v3", "adversary", ["agent_0"]),
        ("simple_adversary_v3", "good", ["adversary_0"]),
        ("simple_push_v3", "adversary", ["agent_0"]),
        ("simple_world_comm_v3", "adversary", ["agent_0", "agent_1"]),
    ],
)
def test_the_competitive_environments_have_opponents(
    name: str, team: str, opponents: list[str], tmp_path: Path
) -> None:
    spec = resolve(f"marl_aajr.envs.{name}", {"max_cycles": 9})
    env = parallel_env(**threat(spec, tmp_path / "victim"))
    assert env.batch.team == team
    assert env.possible_agents == opponents
    parallel_api_test(env, num_cycles=30)


def test_the_view_plays_what_the_batch_plays(tmp_path: Path) -> None:
    spec = resolve("marl_aajr.envs.simple_tag_v3", {"max_cycles": 4})
    settings = threat(spec, tmp_path / "victim")
    env, game = parallel_env(**settings), batched_env(1, **settings)
    seen, _ = env.reset(seed=3)
    obs = game.reset(seed=3)
    for t in range(4):
        np.testing.assert_array_equal(seen["agent_0"], obs["agent_0"][0])
        seen, rewards, terminations, truncations, _ = env.step({"agent_0": np.int64(t)})
        step = game.step({"agent_0": obs["agent_0"].new_full((1,), t).long()})
        assert rewards["agent_0"] == step.rewards["agent_0"].item()
        obs = step.obs
    assert (terminations["agent_0"], truncations["agent_0"], env.agents) == (False, True, [])


def test_masks_are_shown(tmp_path: Path) -> None:
    env = parallel_env(**threat(moves(), tmp_path / "victim", agents=["second"]))
    seen, _ = env.reset(seed=0)
    assert env.observation_space("second").contains(seen["second"])
    assert set(seen["second"]) == {"observation", "action_mask"}
