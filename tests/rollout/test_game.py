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
from pettingzoo.utils.conversions import aec_to_parallel

from marl_aajr.rollout.adapters import ConvertedGame, ParallelGame, game_of
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.game import EnvironmentFault, Game, Turn
from tests.rollout.toy_games import Circle, Scripted


def act(game: Game, turn: Turn, rng: np.random.Generator) -> dict[str, Any]:
    """A random legal action for everybody who must act."""
    actions: dict[str, Any] = {}
    for agent in turn.acting:
        space, obs = game.action_spaces[agent], turn.obs[agent]
        if isinstance(space, spaces.Discrete):
            mask = obs["action_mask"] if isinstance(obs, dict) else np.ones(space.n)
            actions[agent] = int(rng.choice(np.flatnonzero(mask)))
        else:
            assert isinstance(space, spaces.Box)
            actions[agent] = rng.uniform(space.low, space.high).astype(space.dtype)
    return actions


def play(game: Game, seed: int) -> list[Turn]:
    rng = np.random.default_rng(seed)
    turns = [game.reset(seed=seed)]
    while not turns[-1].over:
        turns.append(game.step(act(game, turns[-1], rng)))
    return turns


def returns(turns: list[Turn]) -> dict[str, float]:
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
        "from marl_aajr.rollout.adapters import game_of\n"
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


class Faulty(Scripted):
    """Breaks the contract in one way, from the second step on (or at the second reset)."""

    def __init__(self, fault: str) -> None:
        super().__init__(dict.fromkeys("abc", (9, "truncated")))
        self.fault, self.resets = fault, 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        size = 3 if self.fault == "space" and self.resets and agent == "b" else 2
        return spaces.Box(-1.0, 99.0, (size,), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, terminations, truncations, infos = super().step(actions)
        if self.t == 2:
            if self.fault == "nan observation":
                obs["b"][1] = np.nan
            elif self.fault == "shape":
                obs["b"] = obs["b"][:1]
            elif self.fault == "nan reward":
                rewards["b"] = float("nan")
            elif self.fault == "no reward":
                del rewards["b"]
            elif self.fault == "no observation":
                del obs["b"]
            elif self.fault == "vanish":
                self.agents.remove("b")
            elif self.fault == "stranger":
                self.agents.append("z")
            elif self.fault == "dtype":
                obs["b"] = np.array(["x", "y"])
            elif self.fault == "exception":
                raise RuntimeError("agent b fell through the floor")
        return obs, rewards, terminations, truncations, infos


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nan observation", r"observation of agent 'b' is not finite at \[1\]"),
        ("shape", r"observation of agent 'b' has shape \(1,\), its space says \(2,\)"),
        ("dtype", r"observation of agent 'b' has dtype <U1, its space says float32"),
        ("nan reward", "reward of agent 'b' is nan"),
        ("no reward", "agent 'b' no reward"),
        ("no observation", "no observation to agent 'b'"),
        ("vanish", "'b' left without being terminated or truncated"),
        ("stranger", "'z' that is not in possible_agents"),
        ("exception", "raised RuntimeError: agent b fell"),
    ],
)
def test_a_fault_names_the_environment_the_agent_and_the_step(fault: str, says: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"environment my_env, step 2: .*{says}"):
        play(game_of(Faulty(fault), name="my_env"), seed=0)


def test_a_space_that_changes_is_a_fault() -> None:
    game = game_of(Faulty("space"), name="my_env")
    game.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="observation space of agent 'b' changed"):
        game.reset(seed=1)


def test_a_last_observation_may_be_missing_after_termination_but_not_after_truncation() -> None:
    class Mute(Scripted):
        def step(self, actions: dict[str, Any]) -> Any:
            obs, *rest = super().step(actions)
            return {a: o for a, o in obs.items() if a in self.agents}, *rest

    mute = {"a": (1, "terminated"), "b": (2, "terminated")}
    turns = play(game_of(Mute(mute, agents="ab"), name="mute"), seed=0)
    assert turns[1].terminations == {"a": True, "b": False}
    assert list(turns[1].obs) == ["b"]
    cut = {"a": (1, "truncated"), "b": (2, "terminated")}
    with pytest.raises(EnvironmentFault, match="no observation to agent 'a'"):
        play(game_of(Mute(cut, agents="ab"), name="mute"), seed=0)


def test_values_take_the_dtype_of_their_space_when_nothing_is_lost() -> None:
    class Sloppy(Scripted):
        def _obs(self, agent: str) -> Any:
            return [1.5, 2]

    class Pixels(Scripted):
        def observation_space(self, agent: str) -> spaces.Space[Any]:
            return spaces.Box(0, 255, (2,), np.uint8)

        def _obs(self, agent: str) -> Any:
            return np.array([255, 0])

    endings = dict.fromkeys("abc", (2, "truncated"))
    obs = game_of(Sloppy(endings), name="sloppy").reset(seed=0).obs["a"]
    assert obs.dtype == np.float32
    assert obs.tolist() == [1.5, 2.0]
    assert game_of(Pixels(endings), name="p").reset(seed=0).obs["c"].dtype == np.uint8

    class Lossy(Pixels):
        def _obs(self, agent: str) -> Any:
            return np.array([300, 0])

    with pytest.raises(EnvironmentFault, match="dtype int64, its space says uint8"):
        game_of(Lossy(endings), name="lossy").reset(seed=0)


def test_a_missing_action_says_whose() -> None:
    game = game_of(Scripted(dict.fromkeys("abc", (9, "truncated"))), name="s")
    with pytest.raises(ValueError, match="call reset"):
        game.step({})
    game.reset(seed=0)
    with pytest.raises(ValueError, match=r"got \['a', 'c'\]; add b"):
        game.step({"a": 0, "c": 0})


def test_only_pettingzoo_environments_are_games() -> None:
    with pytest.raises(ValueError, match=r"expected thing to be a PettingZoo .*, got dict"):
        game_of({}, name="thing")
    nobody = Scripted({}, agents="")
    with pytest.raises(ValueError, match="possible_agents"):
        game_of(nobody, name="thing")


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


def test_agents_that_do_not_move_in_a_cycle_are_not_simultaneous() -> None:
    class Claims(Circle):
        metadata = {"name": "claims_v0", "is_parallelizable": True}  # noqa: RUF012

    env = aec_to_parallel(Claims({"a": (1, "terminated"), "b": (9, "truncated")}, agents="ab"))
    with pytest.raises(EnvironmentFault, match="agent 'a' is to move where 'b' should"):
        play(game_of(env, name="claims"), seed=0)
