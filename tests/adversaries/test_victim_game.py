"""Games in which frozen victims play: the contract, and minus the team's return to the last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.env_checker import check_batched_env
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.victims import Victim
from tests.adversaries.games import replaced
from tests.evaluation.players import network, team

pytestmark = pytest.mark.slow

GAMES: list[tuple[str, dict[str, Any], str, tuple[str, ...], int]] = [
    ("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7}, "team", ("agent_1",), 20),
    ("marl_aajr.envs.simple_spread_v3", {"max_cycles": 7}, "team", ("agent_0", "agent_2"), 20),
    ("tests.rllib.test_stock_rows:scripted", {"endings": "staggered"}, "team", ("a",), 45),
    ("tests.rllib.test_stock_rows:scripted", {"endings": "staggered"}, "team", ("c", "a"), 45),
    ("tests.rllib.test_stock_rows:circle", {"endings": "mixed"}, "team", ("b",), 45),
    ("pettingzoo.classic.connect_four_v3", {}, "player_0", ("player_1",), 60),
]
IDS = [f"{name.rpartition('.')[2]}-{'-'.join(agents)}" for name, _, _, agents, _ in GAMES]


def players(spec: EnvironmentSpec) -> Victim:
    """Random networks, also for boards."""
    if "connect_four" not in spec.name:
        return team(spec)
    return team(spec, torch.nn.Sequential(torch.nn.Flatten(), network(7, 84)))


def greedy(victim: Victim, env: BatchedEnv, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    masks = env.action_mask
    return {
        a: victim.greedy(a, victim.policy(a, action_mask=masks[a])(victim.inputs(a, seen)))
        for a, seen in obs.items()
    }


def first_returns(victim: Victim, env: BatchedEnv, side: str, *, seed: int) -> Tensor:
    """What a team earns in the first episode of every copy, without any game around it."""
    obs, earned = env.reset(seed=seed), torch.zeros(env.num_envs)
    over = torch.zeros(env.num_envs, dtype=torch.bool)
    while not over.all():
        step = env.step(greedy(victim, env, obs))
        earned += sum(r for a, r in step.rewards.items() if env.teams[a] == side) * ~over
        obs, over = step.obs, over | step.episode_over
    return earned


@pytest.mark.parametrize(("name", "kwargs", "side", "agents", "steps"), GAMES[1::2], ids=IDS[1::2])
def test_games_with_victims_keep_the_contract(
    name: str, kwargs: dict[str, Any], side: str, agents: tuple[str, ...], steps: int
) -> None:
    """With victims that sample their actions, each copy by numbers of its own: all at once, and in turns."""
    spec = resolve(name, kwargs)
    victim = players(spec)
    check_batched_env(
        lambda num_envs: replaced(spec, victim, num_envs, agents, team=side, sampled=True), steps=steps
    )


@pytest.mark.parametrize(("name", "kwargs", "side", "agents", "steps"), GAMES, ids=IDS)
def test_the_players_earn_minus_what_the_team_earns(
    name: str, kwargs: dict[str, Any], side: str, agents: tuple[str, ...], steps: int
) -> None:
    """Also where a player is out before the others, or waits for its turn when the game ends."""
    spec = resolve(name, kwargs)
    victim = players(spec)
    game = replaced(spec, victim, 2, agents, team=side)
    obs, earned = game.reset(seed=5), torch.zeros(2)
    over = torch.zeros(2, dtype=torch.bool)
    while not over.all():
        # The players do what the victims would do, so the game is the one without them.
        step = game.step(greedy(victim, game.env, {p: obs[p] for p in game.possible_agents}))
        earned += torch.stack(list(step.rewards.values())).sum(0) * ~over
        obs, over = step.obs, over | step.episode_over
    torch.testing.assert_close(earned, -first_returns(victim, make_batch(spec, 2), side, seed=5))


def test_sampled_victims_act_by_their_probabilities() -> None:
    spec = resolve("marl_aajr.envs.simple_spread_v3", {})
    victim = team(spec)
    game = replaced(spec, victim, 4000, ("agent_0",), team="team", sampled=True)
    obs = game.env.reset(seed=1)
    game.reset(seed=1)
    expected = torch.softmax(victim.policy("agent_2")(obs["agent_2"]), -1).mean(0)
    chosen = game._victims_actions({})["agent_2"]
    shares = torch.bincount(chosen, minlength=5) / 4000
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)
    assert expected.max() - expected.min() > 0.06


def test_a_victim_of_another_environment_is_refused() -> None:
    spec, other = resolve("simple_spread_v3", {"N": 2}), resolve("simple_spread_v3", {"N": 3})
    with pytest.raises(ValueError, match=r"expected a victim for the observations .* of 'agent_0'"):
        replaced(other, team(spec), 1, ("agent_0",), team="team")
    with pytest.raises(ValueError, match="'nobody'"):
        replaced(spec, team(spec), 1, ("agent_0",), team="nobody")
