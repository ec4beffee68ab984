"""Checkpoints whose connectors flatten observations play in environments that `FlatObservations` flattens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.utils.wrappers import BaseParallelWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import get_base_struct_from_space

from marl_aajr import register
from marl_aajr.evaluation import evaluate
from marl_aajr.rllib import victim_from_checkpoint
from marl_aajr.rollout.adapters import FlatObservations
from marl_aajr.rollout.environments import resolve

CELLS = spaces.MultiDiscrete([5, 5, 5])


class Grid(BaseParallelWrapper[str, Any, Any]):
    """simple_spread whose agents see their first three numbers as cells of a grid."""

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return CELLS

    def _cells(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {a: np.clip(np.round(own[:3] * 2 + 2), 0, 4).astype(np.int64) for a, own in obs.items()}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._cells(obs), infos

    def step(self, actions: dict[str, Any]) -> Any:
        obs, *rest = self.env.step(actions)
        return self._cells(obs), *rest


def make() -> Grid:
    return Grid(simple_spread_v3.parallel_env(max_cycles=10))


def make_flat() -> FlatObservations:
    return FlatObservations(make())


@pytest.mark.usefixtures("ray_session")
def test_a_checkpoint_of_one_hot_observations(tmp_path: Path) -> None:
    config = (
        PPOConfig()
        .environment(register(resolve(f"{__name__}:make")))
        .multi_agent(policies={"p"}, policy_mapping_fn=lambda *_, **__: "p")
        .env_runners(
            num_env_runners=0,
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(multi_agent=True),
        )
    )
    algorithm = config.build_algo()
    module = algorithm.get_module("p")
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    with pytest.raises(
        ValueError, match=r"^expected module 'p' to read .* returns .*FlatObservations\(env\)$"
    ):
        victim_from_checkpoint(tmp_path / "checkpoint", env=f"{__name__}:make")
    victim = victim_from_checkpoint(tmp_path / "checkpoint", env=f"{__name__}:make_flat")
    raw, env = make(), make_flat()
    cells, seen = raw.reset(seed=0)[0], env.reset(seed=0)[0]
    for _ in range(5):
        one_hot = {a: np.eye(5, dtype=np.float32)[own].ravel() for a, own in cells.items()}
        outputs = module.forward_inference({Columns.OBS: torch.from_numpy(np.stack(list(one_hot.values())))})
        wanted = outputs[Columns.ACTION_DIST_INPUTS].argmax(-1).tolist()
        actions = victim.act(seen)
        assert list(actions.values()) == wanted
        cells, seen = raw.step(actions)[0], env.step(actions)[0]
    assert len(evaluate(victim, episodes=2).clean.returns) == 2


@pytest.mark.parametrize(
    "space",
    [
        CELLS,
        spaces.Discrete(4),
        spaces.Dict({"z": spaces.Box(-1, 1, (2, 2)), "a": spaces.Discrete(3), "m": CELLS}),
        spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (3,)), spaces.Dict(y=spaces.Discrete(2))]),
    ],
    ids=["multi", "discrete", "dict", "tuple"],
)
def test_vectors_are_those_of_rllib(space: spaces.Space[Any]) -> None:
    space.seed(0)
    value = space.sample()
    env = make_flat()
    env.env.observation_space = lambda agent: space
    (found,) = env._flat({"agent_0": value}).values()
    wanted = flatten_inputs_to_1d_tensor(value, get_base_struct_from_space(space), batch_axis=False)
    np.testing.assert_array_equal(found, wanted)
    assert env.observation_space("agent_0").contains(found)
