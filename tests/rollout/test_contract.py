"""The contract check that users run on their own batches: it passes for adapted games of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from marl_aajr.rollout.centralized_critic import CentralBatch, Critic
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch


class ManyActions(ParallelEnv[str, Any, Any]):
    """Two agents that see their last actions; one acts with two numbers, the other with a vector."""

    metadata = {"name": "many_actions_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-9.0, 9.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        low, high = np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32)
        return spaces.MultiDiscrete([3, 4]) if agent == "a" else spaces.Box(low, high)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t = list(self.possible_agents), 0
        return {a: np.zeros(2, np.float32) for a in self.agents}, {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        over = self.t == 5
        told = {a: np.asarray(action, np.float32) for a, action in actions.items()}
        flags = dict.fromkeys(told, over)
        answer: Any = (
            told,
            dict.fromkeys(told, 1.0),
            dict.fromkeys(told, False),
            flags,
            {a: {} for a in told},
        )
        self.agents = [] if over else self.agents
        return answer


def many_actions() -> ManyActions:
    return ManyActions()


GAMES: list[tuple[str, dict[str, Any]]] = [
    ("tests.rollout.test_contract:many_actions", {}),
    ("tests.rllib.test_stock_rows:scripted", {"endings": "staggered"}),
    ("tests.rllib.test_stock_rows:circle", {"endings": "mixed"}),
    ("pettingzoo.classic.connect_four_v3", {}),
    ("pettingzoo.classic.leduc_holdem_v4", {}),
    ("pettingzoo.sisl.pursuit_v5", {"max_cycles": 8, "n_evaders": 4, "n_pursuers": 2}),
    ("mpe2.collect_treasure_v1", {"max_cycles": 8}),
    ("mpe2.simple_formation_v1", {"max_cycles": 8}),
    ("mpe2.simple_line_v1", {"max_cycles": 8}),
]


@pytest.mark.parametrize(("name", "kwargs"), GAMES, ids=[name.rpartition(".")[2] for name, _ in GAMES])
def test_adapted_games_keep_the_contract(name: str, kwargs: dict[str, Any]) -> None:
    spec = resolve(name, kwargs)
    steps = 20 if "max_cycles" in kwargs else 45
    check_batched_env(lambda num_envs: PettingZooBatch(spec, num_envs), steps=steps)


@pytest.mark.parametrize("critic", ["joint", "state"])
def test_batches_for_centralised_critics_keep_it_too(critic: Critic) -> None:
    spec = resolve("mpe2.simple_tag_v3", {"max_cycles": 7})
    check_batched_env(lambda num_envs: CentralBatch(PettingZooBatch(spec, num_envs), critic), steps=12)


def test_walkers_that_fall_leave_the_others_and_the_contract_holds() -> None:
    falls = {"terminate_on_fall": False, "remove_on_fall": True, "max_cycles": 80}
    spec = resolve("pettingzoo.sisl.multiwalker_v9", falls)
    # Box2D's worlds cannot be saved, and the walkers are gone when a game is over.
    check_batched_env(lambda n: PettingZooBatch(spec, n), steps=90, saves=False, final_states=False)
    batch = PettingZooBatch(spec, 4)
    batch.reset(seed=0)
    early = 0
    for t in range(79):
        step = batch.step(random_actions(batch, seed=t))
        ended = torch.stack([step.terminations[agent] for agent in batch.possible_agents])
        early += int((ended & ~step.episode_over).sum())
    assert early > 0


def test_a_simulator_that_cannot_be_saved_says_so_by_name() -> None:
    spec = resolve("pettingzoo.sisl.multiwalker_v9")
    batch = PettingZooBatch(spec, 1)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=r"environment pettingzoo.sisl.multiwalker_v9, copy 0 \("):
        batch.get_state()


def test_a_restored_environment_keeps_the_screen_that_it_has() -> None:
    """Surfaces of pygame are in no state; dynamics do not need them, but drawing does."""
    spec = resolve("mpe2.simple_spread_v3", {"render_mode": "rgb_array"})
    one, other = PettingZooBatch(spec, 1), PettingZooBatch(spec, 1)
    one.reset(seed=0)
    other.reset(seed=1)
    first, second = (batch._shares.own.games[0] for batch in (one, other))
    assert not np.array_equal(first.render(), second.render())
    other.set_state(one.get_state())
    np.testing.assert_array_equal(first.render(), second.render())


def test_batch_that_depends_on_its_neighbours_is_found_out() -> None:
    class Infectious(PettingZooBatch):
        def reset(self, *, seed: int) -> Any:
            return super().reset(seed=seed + self.num_envs)

    spec = resolve("mpe2.simple_v3", {"max_cycles": 5})
    with pytest.raises(AssertionError, match="other copies beside it"):
        check_batched_env(lambda num_envs: Infectious(spec, num_envs), steps=12)
