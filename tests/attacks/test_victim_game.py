"""Games in which frozen victims play: the contract, and minus the team's return to the last step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.evaluation.episodes import play
from marl_aajr.rollout.batches import make_batch
from marl_aajr.rollout.contract import check_batched_env
from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import Victim
from tests.attacks.games import replaced
from tests.evaluation.players import network, team

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


@pytest.mark.parametrize(("name", "kwargs", "side", "agents", "steps"), GAMES, ids=IDS)
def test_games_with_victims_keep_the_contract(
    name: str, kwargs: dict[str, Any], side: str, agents: tuple[str, ...], steps: int
) -> None:
    """With victims that sample their actions, each copy by numbers of its own."""
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
    plain = play(victim, make_batch(spec, 2), episodes=2, seed=5)
    while not over.all():
        # The players do what the victims would do, so the game is the one without them.
        masks = game.env.action_mask
        actions = {}
        for player in game.possible_agents:
            policy = victim.policy(player, action_mask=masks[player])
            actions[player] = victim.greedy(player, policy(victim.inputs(player, obs[player])))
        step = game.step(actions)
        earned += torch.stack(list(step.rewards.values())).sum(0) * ~over
        obs, over = step.obs, over | step.episode_over
    members = [i for i, agent in enumerate(game.env.possible_agents) if game.env.teams[agent] == side]
    torch.testing.assert_close(earned.double(), -plain[:, members].sum(1), rtol=1e-5, atol=1e-5)


def test_sampled_victims_act_by_their_probabilities() -> None:
    spec = resolve("marl_aajr.envs.simple_spread_v3", {})
    victim = team(spec)
    game = replaced(spec, victim, 4000, ("agent_0",), team="team", sampled=True)
    obs = game.env.reset(seed=1)
    game.reset(seed=1)
    expected = torch.softmax(victim.policy("agent_2")(obs["agent_2"]), -1).mean(0)
    chosen = game._victims_actions({})["agent_2"]
    shares = torch.bincount(chosen, minlength=5) / 4000
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    assert expected.max() - expected.min() > 0.1


def test_a_victim_of_another_environment_is_refused() -> None:
    spec, other = resolve("simple_spread_v3", {"N": 2}), resolve("simple_spread_v3", {"N": 3})
    with pytest.raises(ValueError, match=r"expected a victim for the observations .* of 'agent_0'"):
        replaced(other, team(spec), 1, ("agent_0",), team="team")
    with pytest.raises(ValueError, match="'nobody'"):
        replaced(spec, team(spec), 1, ("agent_0",), team="nobody")
