"""Evaluations, attacks and frozen players in environments with ways of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from marl_aajr.core.environment_values import agent_name
from marl_aajr.evaluation import evaluate
from marl_aajr.pettingzoo import attacked, with_agents
from marl_aajr.victims import Victim
from tests.own_ways import ACTIONS, AGENTS, NAME, PLAYED, OwnWays, turns

WAYS: tuple[dict[str, Any], ...] = (
    {"agents": "integers"},
    {"agents": "tuples", "masks": True},
    {"agents": "enums", "masks": True, "acts": "multi", "start": 2},
    {"agents": "numpy", "dtype": "float64", "form": "list"},
    {"agents": "texts", "dtype": "float16", "start": -1, "form": "array"},
)


def victim_of(env: OwnWays) -> Victim:
    """A linear policy that likes the first action most, which is illegal under masks."""
    torch.manual_seed(0)
    network = nn.Linear(4, ACTIONS[env.acts])
    with torch.no_grad():
        network.bias[0] = 4.0
    return Victim.from_policies(network, env)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["agents"])
def test_all_rows_play_legal_actions_as_the_environment_counts_them(way: dict[str, Any]) -> None:
    PLAYED.clear()
    second = AGENTS[way["agents"]][1]
    found = evaluate(
        victim_of(OwnWays(**way)),
        NAME,
        env_kwargs=way,
        attacks=[("fgsm", 0.3)],
        episodes=3,
        agents=[second],
        replace=["random"],
    )
    assert found.clean_return == 20
    assert found.agents == (agent_name(second),)
    assert {first for first, *_ in PLAYED} == ({1, 2} if way.get("masks") else {0, 1, 2})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["agents"])
def test_wrappers_hand_back_the_environments_own_keys_types_and_actions(way: dict[str, Any]) -> None:
    first, second = AGENTS[way["agents"]]
    victim = victim_of(OwnWays(**way))
    env = attacked(OwnWays(**way), "pgd", victim, epsilon=0.1, agents=[first])
    obs, infos = env.reset(seed=1)
    assert list(obs) == [first, second]
    assert env.observation_space(first).contains(obs[first])
    assert np.abs(obs[first].astype(np.float64) - [0, 1, 2, 3]).max() == pytest.approx(0.1, abs=1e-5)
    assert (obs[second] == [0, 1, 2, 3]).all()
    env.step(victim.act(obs, infos=infos))  # which refuses actions that it does not declare
    left = with_agents(OwnWays(**way), {first: victim})
    obs, infos = left.reset(seed=1)
    while left.agents:
        assert list(obs) == [second]
        obs, *_, infos = left.step(victim.act(obs, infos=infos))


@pytest.mark.parametrize("given", ["int64", "uint8", "bool", "float16"])
def test_nothing_that_an_attack_did_is_rounded_away(given: str) -> None:
    torch.manual_seed(0)
    victim = Victim.from_policies(nn.Linear(4, 3), OwnWays())

    def shown(kind: str) -> Any:
        return attacked(OwnWays(given=kind), "pgd", victim, epsilon=0.3).reset(seed=1)[0][0]

    seen = np.array([0, 1, 2, 3], given).astype(np.float32)
    assert shown(given).dtype == np.float32
    assert np.abs(shown(given) - seen).max() == pytest.approx(0.3, abs=1e-5)
    if given != "bool":  # which has other numbers
        assert (shown(given) == shown("float32")).all()


def test_legal_actions_in_infos_are_kept_in_turns() -> None:
    network = nn.Linear(4, 3)
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([2.0, 1.0, 0.0])
    victim = Victim.from_policies(network, turns())
    found = evaluate(victim, "tests.own_ways:turns", attacks=[("fgsm", 0.1)], episodes=2)
    assert found.clean_return == 230
    env = attacked(turns(), "fgsm", victim, epsilon=0.1)
    env.reset(seed=0)
    for agent in env.agent_iter():
        obs, reward, terminated, truncated, _ = env.last()
        assert reward >= 0
        out = terminated or truncated
        env.step(None if out else victim.act({agent: obs}, infos=env.infos)[agent])


def test_agents_are_named_once_for_budgets_and_files() -> None:
    victim = victim_of(OwnWays(agents="tuples"))
    found = evaluate(
        victim,
        NAME,
        env_kwargs={"agents": "tuples"},
        attacks=[("fgsm", 0.3)],
        episodes=2,
        budget="agents=red_1,scale=red_1:0.5",
    )
    assert found.agents == ("red_1",)
