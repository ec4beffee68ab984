"""Frozen agents in PettingZoo environments of both kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo.classic import connect_four_v3
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from torch import nn

from marl_aajr.pettingzoo import with_agents
from marl_aajr.victims import Victim
from tests.evaluation.toys import Moves
from tests.own_ways import PLAYED, OwnWays
from tests.test_pettingzoo import one_network, players, spread


@pytest.mark.filterwarnings("ignore")
def test_what_is_left_is_a_parallel_environment() -> None:
    def build() -> Any:
        env = simple_tag_v3.parallel_env(max_cycles=8)
        victim = players(env)
        return with_agents(env, {a: victim for a in env.possible_agents if "adv" in a}, sampled=True)

    env = build()
    assert env.possible_agents == ["agent_0"]
    parallel_api_test(env, num_cycles=8)
    parallel_seed_test(build, num_cycles=8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [connect_four_v3.env, simple_spread_v3.env], ids=["four", "spread"])
def test_what_is_left_is_a_turn_based_environment(make: Callable[[], Any]) -> None:
    def build() -> Any:
        env = make()
        return with_agents(env, {env.possible_agents[-1]: players(env)}, sampled=True)

    api_test(build(), num_cycles=8)
    seed_test(build, num_cycles=8)


def test_the_victims_play_as_they_would_themselves() -> None:
    env, true = simple_tag_v3.parallel_env(max_cycles=5), simple_tag_v3.parallel_env(max_cycles=5)
    victim = players(env)
    rest = with_agents(env, {a: victim for a in env.possible_agents if "adv" in a})
    mine, _ = rest.reset(seed=2)
    obs, _ = true.reset(seed=2)
    assert list(mine) == ["agent_0"]
    while rest.agents:
        mine, rewards, *_ = rest.step({"agent_0": 1})
        obs, expected, *_ = true.step({**victim.act(obs), "agent_0": 1})
        assert rewards == {"agent_0": expected["agent_0"]}
        np.testing.assert_array_equal(mine["agent_0"], obs["agent_0"])
    assert not true.agents


def test_what_is_earned_while_the_victims_move_is_not_lost() -> None:
    env = with_agents(Moves(longest=9), {"second": players(Moves())})
    env.reset(seed=5)
    table, total, moved = env.unwrapped, 0.0, 0.0
    for agent in env.agent_iter():
        obs, reward, terminated, truncated, _ = env.last()
        total += reward
        over = terminated or truncated
        env.step(None if over else int(np.flatnonzero(obs["action_mask"])[-1]))
        if not over:
            moved += env.rewards.get(agent, 0.0)
    assert agent == "first"
    assert total == moved != 0.0
    assert table.t == table.length


def test_somebody_must_be_left_to_play() -> None:
    victim = one_network(spread())
    with pytest.raises(ValueError, match="expected agents that are left to play"):
        with_agents(spread(), dict.fromkeys(victim.agents, victim))
    with pytest.raises(ValueError, match="expected players out of agent_0"):
        with_agents(spread(), {"b": victim})


@pytest.mark.parametrize("acts", ["discrete", "multi"])
def test_a_traitor_may_have_learned_with_actions_that_counted_from_0(acts: str) -> None:
    env, trained = OwnWays(acts=acts, start=3), OwnWays(acts=acts)
    inputs = {"discrete": 3, "multi": 5}[acts]
    victim = Victim.from_policies(nn.Linear(4, inputs), trained)
    played = with_agents(env, {0: victim})
    played.reset(seed=0)
    PLAYED.clear()
    played.step({1: env.action_space(1).sample()})
    obs = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert PLAYED[-1] == tuple(victim.greedy("0", victim.policy("0")(obs)).flatten().tolist())
