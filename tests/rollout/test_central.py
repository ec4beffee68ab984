"""What a centralised critic is given: the same turn by turn and in batches, up to the last step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pettingzoo.classic import tictactoe_v3

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.centralized_critic import CentralBatch, CentralView, Critic
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from tests.rollout.toy_games import Scripted

HERE = "tests.rollout.test_central"


class Told(Scripted):
    """With a state: the time, and how many are there."""

    state_space = gym.spaces.Box(-1.0, 99.0, (2,), np.float32)

    def state(self) -> Any:
        return np.array([self.t, len(self.agents)], np.float32)


def told(**kwargs: Any) -> Told:
    return Told({"a": (3, "terminated"), "b": (4, "truncated"), "c": (4, "truncated")}, **kwargs)


def broken() -> Told:
    env = told()
    env.state = lambda: np.full(2, np.nan, np.float32)  # type: ignore[method-assign]
    return env


SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 3})
MPE = resolve("mpe2.simple_spread_v3", {"max_cycles": 3})
TURNS = resolve("mpe2.simple_spread_v3:env", {"max_cycles": 3})
TOLD = EnvironmentSpec(f"{HERE}:told", {"arrivals": {"c": 2}})


@pytest.mark.parametrize(
    ("spec", "critic"),
    [
        *((spec, critic) for spec in (SPREAD, MPE, TOLD) for critic in ("joint", "state")),
        (TURNS, "state"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_batches_tell_what_single_games_tell(spec: EnvironmentSpec, critic: Critic) -> None:
    """Also beside the last observations: agents that end alone, agents that end with the episode."""
    batch = CentralBatch(make_batch(spec, 1), critic)
    game = spec.make()
    view = CentralView(game, critic)
    # Copies of single environments take the seed of their first episode from a sequence.
    seed = 0 if spec is SPREAD else int(np.random.SeedSequence(0, spawn_key=(0, 0)).generate_state(1)[0] >> 1)
    assert view.space == batch.central_space
    assert spec is TOLD or view.space.shape == (54,)
    obs, turn = batch.reset(seed=0), game.reset(seed=seed)
    ends = 0
    for t in range(9):
        for agent in turn.acting:
            whole = np.concatenate([turn.obs[agent].ravel(), view(turn)])
            np.testing.assert_allclose(obs[agent][0], whole, atol=1e-6, err_msg=f"{agent} at {t}")
        step = batch.step({agent: torch.tensor([1]) for agent in game.possible_agents})
        turn = game.step(dict.fromkeys(turn.acting, 1))
        for agent in turn.obs:
            if turn.terminations[agent] or turn.truncations[agent]:
                whole = np.concatenate([turn.obs[agent].ravel(), view(turn)])
                np.testing.assert_allclose(step.final_obs[agent][0], whole, atol=1e-6)
                ends += 1
        obs = step.obs
        if turn.over:
            break
    assert ends == 3


def test_who_is_not_there_is_zero_in_the_joint_observation() -> None:
    game = TOLD.make()
    view = CentralView(game, "joint")
    turn = game.reset()
    assert view(turn).tolist() == [0, 0, 0, 1, 0, 0]
    for _ in range(2):
        turn = game.step(dict.fromkeys(turn.acting, 0))
    assert view(turn).tolist() == [2, 0, 2, 1, 2, 2]
    turn = game.step(dict.fromkeys(turn.acting, 0))
    assert view(turn).tolist() == [3, 0, 3, 1, 3, 2], "who has just ended is seen as it was last"
    turn = game.step(dict.fromkeys(turn.acting, 0))
    assert view(turn).tolist() == [0, 0, 4, 1, 4, 2]


def test_a_state_that_is_not_finite_is_the_environments_fault() -> None:
    game = EnvironmentSpec(f"{HERE}:broken").make()
    turn = game.reset()
    with pytest.raises(EnvironmentFault, match="the state is not finite"):
        CentralView(game, "state")(turn)


def turns() -> Any:
    return tictactoe_v3.env()


def stateless() -> Any:
    return Scripted(dict.fromkeys("abc", (3, "truncated")))


@pytest.mark.parametrize(
    ("name", "critic", "message"),
    [
        ("turns", "joint", "the turn-based .*use 'state' if it has one"),
        ("turns", "state", "expected .* to declare a state_space .* got none; use 'joint' or 'own'"),
        ("stateless", "state", "expected .* to declare a state_space"),
        ("stateless", "own", "expected critic"),
    ],
)
def test_views_that_do_not_exist_are_refused(name: str, critic: Critic, message: str) -> None:
    spec = EnvironmentSpec(f"{HERE}:{name}")
    with pytest.raises(ValueError, match=message):
        CentralView(spec.make(), critic)
    with pytest.raises(ValueError, match=message):
        CentralBatch(make_batch(spec, 2), critic)
