"""A Game says who acts, what they earned, how they ended, and whose fault it is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4, simple_spread_v3, simple_tag_v3
from pettingzoo.butterfly import knights_archers_zombies_v11
from pettingzoo.classic import leduc_holdem_v4, tictactoe_v3

from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_games import ConvertedGame, ParallelGame, game_of
from tests.rollout.playing import play
from tests.rollout.toy_games import Circle, Scripted


def returns(turns: list[GameStep]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for turn in turns:
        for agent, reward in turn.rewards.items():
            totals[agent] = totals.get(agent, 0.0) + reward
    return totals


def test_a_time_limit_truncates_everybody_in_the_last_turn() -> None:
    turns = play(game_of(simple_spread_v3.parallel_env(max_cycles=5), name="spread"), seed=1)
    assert len(turns) == 6
    assert [len(turn.acting) for turn in turns] == [3, 3, 3, 3, 3, 0]
    assert turns[-1].truncations == {"agent_0": True, "agent_1": True, "agent_2": True}
    assert not any(turns[-1].terminations.values())
    assert set(turns[-1].obs) == {"agent_0", "agent_1", "agent_2"}


def test_heterogeneous_agents_keep_their_own_spaces() -> None:
    game = game_of(simple_speaker_listener_v4.parallel_env(max_cycles=2), name="speaker")
    assert [game.observation_spaces[a].shape for a in game.possible_agents] == [(3,), (11,)]
    assert [s.n for s in game.action_spaces.values() if isinstance(s, spaces.Discrete)] == [3, 5]
    turn = game.reset(seed=0)
    assert [obs.shape for obs in turn.obs.values()] == [(3,), (11,)]


def test_agents_that_end_early_leave_and_the_others_play_on() -> None:
    endings = {"a": (2, "terminated"), "b": (3, "truncated"), "c": (4, "terminated")}
    turns = play(game_of(Scripted(endings), name="scripted"), seed=0)
    assert [turn.acting for turn in turns] == [("a", "b", "c")] * 2 + [("b", "c"), ("c",), ()]
    assert [turn.over for turn in turns] == [False] * 4 + [True]
    assert turns[2].terminations == {"a": True, "b": False, "c": False}
    assert turns[3].truncations == {"b": True, "c": False}
    assert list(turns[3].obs) == ["b", "c"]
    assert returns(turns) == {"a": 2.0, "b": 6.0, "c": 12.0}


def test_agents_may_appear_later() -> None:
    endings = {"a": (3, "terminated"), "b": (3, "terminated")}
    turns = play(game_of(Scripted(endings, arrivals={"b": 2}, agents="ab"), name="s"), seed=0)
    assert [turn.acting for turn in turns] == [("a",), ("a",), ("a", "b"), ()]
    assert turns[2].rewards == {"a": 1.0, "b": 0.0}


def test_real_agents_that_die_early_receive_nothing_afterwards() -> None:
    game = game_of(knights_archers_zombies_v11.parallel_env(max_cycles=400), name="kaz")
    turns = play(game, seed=1)
    ended: set[str] = set()
    for turn in turns:
        assert not ended & set(turn.obs)
        ended |= {a for a in turn.obs if turn.terminations[a] or turn.truncations[a]}
    assert ended == set(game.possible_agents)
    assert len({len(turn.acting) for turn in turns}) > 2, "somebody must have died early"


def test_turn_based_rewards_accumulate_until_the_next_turn_or_the_end() -> None:
    endings = {"a": (4, "terminated"), "b": (4, "truncated"), "c": (4, "terminated")}
    turns = play(game_of(Circle(endings), name="circle"), seed=0)
    assert [turn.acting for turn in turns] == [("a",), ("b",), ("c",), ("a",), ()]
    assert [turn.rewards for turn in turns[:4]] == [{"a": 0.0}, {"b": 1.0}, {"c": 2.0}, {"a": 2.0}]
    assert turns[4].rewards == {"a": 0.0, "b": 2.0, "c": 1.0}
    assert turns[4].terminations == {"a": True, "b": False, "c": True}
    assert turns[4].truncations == {"a": False, "b": True, "c": False}
    assert turns[0].infos == {"a": {"first": True}}


def test_a_player_that_is_out_early_is_stepped_for_it_and_never_asked_again() -> None:
    endings = {"a": (2, "terminated"), "b": (5, "terminated"), "c": (5, "terminated")}
    turns = play(game_of(Circle(endings), name="circle"), seed=0)
    assert [turn.acting for turn in turns] == [("a",), ("b",), ("c",), ("b",), ("c",), ()]
    assert turns[2].terminations == {"a": True, "c": False}


@pytest.mark.parametrize("module", [tictactoe_v3, leduc_holdem_v4], ids=["tictactoe", "leduc"])
def test_real_card_and_board_games_are_zero_sum_with_legal_moves(module: Any) -> None:
    game = game_of(module.env(), name="classic")
    for seed in range(5):
        turns = play(game, seed)
        assert all(len(turn.acting) == 1 for turn in turns[:-1])
        assert sum(returns(turns).values()) == 0.0
        assert all(turns[-1].terminations.values())


def test_the_same_seed_gives_the_same_episode() -> None:
    first, again, other = (
        play(game_of(simple_tag_v3.parallel_env(max_cycles=25), name="tag"), seed) for seed in (3, 3, 4)
    )
    assert returns(first) == returns(again) != returns(other)


def test_agent_order_does_not_depend_on_hashing() -> None:
    script = (
        "from mpe2 import simple_world_comm_v3 as m\n"
        "from marl_aajr.rollout.pettingzoo_games import game_of\n"
        "g = game_of(m.parallel_env(), name='w'); t = g.reset(seed=0)\n"
        "print(g.possible_agents, list(t.obs), list(g.step(dict.fromkeys(t.acting, 0)).rewards))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("leadadversary_0") == 3


def test_it_renders_to_an_array() -> None:
    game = game_of(simple_spread_v3.parallel_env(render_mode="rgb_array"), name="spread")
    game.reset(seed=0)
    assert game.render_mode == "rgb_array"
    assert game.render().shape == (700, 700, 3)
    assert game.state().shape == (54,)
    game.close()


@pytest.mark.parametrize(
    "name",
    [
        "simple_spread_v3",
        "simple_tag_v3",
        "sisl/pursuit-v5",
        "butterfly/knights_archers_zombies-v11",
    ],
)
def test_the_shortcut_through_pettingzoos_conversion_changes_nothing(name: str) -> None:
    kwargs = {"max_cycles": 12}
    game = resolve(name, kwargs).make()
    assert isinstance(game, ConvertedGame)
    plain = ParallelGame(resolve(name, kwargs).make().env, name=name)
    for ours, theirs in zip(play(game, seed=5), play(plain, seed=5), strict=True):
        assert ours.acting == theirs.acting
        assert ours.rewards == theirs.rewards
        assert ours[2:4] == theirs[2:4]
        for agent, obs in ours.obs.items():
            np.testing.assert_array_equal(obs, theirs.obs[agent])
