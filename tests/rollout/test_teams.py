"""Who plays on whose side."""

from __future__ import annotations

from enum import Enum
from typing import Any

import mpe2
import numpy as np
import pytest
from mpe2 import (
    simple_adversary_v3,
    simple_crypto_v3,
    simple_push_v3,
    simple_spread_v3,
    simple_tag_v3,
    simple_world_comm_v3,
)
from pettingzoo.butterfly import knights_archers_zombies_v11
from pettingzoo.classic import hanabi_v5, leduc_holdem_v4, rps_v2, tictactoe_v3
from pettingzoo.utils.conversions import parallel_to_aec
from pettingzoo.utils.wrappers import BaseParallelWrapper

from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.pettingzoo_games import game_of
from marl_aajr.rollout.teams import announce
from marl_aajr.training.config import EnvConfig
from tests.rollout.toy_games import Scripted

assert mpe2  # the modules below are its


@pytest.mark.parametrize(
    ("module", "adversaries"),
    [
        (simple_tag_v3, {"adversary_0", "adversary_1", "adversary_2"}),
        (simple_adversary_v3, {"adversary_0"}),
        (simple_push_v3, {"adversary_0"}),
        (simple_crypto_v3, {"eve_0"}),
        (
            simple_world_comm_v3,
            {"leadadversary_0", "adversary_0", "adversary_1", "adversary_2"},
        ),
    ],
)
def test_competitive_particle_environments_have_two_sides(module: Any, adversaries: set[str]) -> None:
    for env in (module.parallel_env(), module.env()):
        teams = game_of(env, name="particles").teams
        assert {agent for agent, team in teams.items() if team == "adversary"} == adversaries
        assert set(teams.values()) == {"adversary", "good"}


def test_cooperative_environments_have_one() -> None:
    for env in (simple_spread_v3.parallel_env(), knights_archers_zombies_v11.parallel_env()):
        assert set(game_of(env, name="together").teams.values()) == {"team"}


@pytest.mark.parametrize("module", [tictactoe_v3, leduc_holdem_v4, rps_v2])
def test_in_classic_games_every_player_is_its_own_team(module: Any) -> None:
    game = game_of(module.env(), name="classic")
    assert game.teams == {agent: agent for agent in game.possible_agents}


def test_except_in_hanabi() -> None:
    pytest.importorskip("shimmy", reason="Hanabi needs shimmy")
    assert set(game_of(hanabi_v5.env(), name="hanabi").teams.values()) == {"team"}


@pytest.mark.parametrize(
    ("name", "teams"),
    [("pong_v3", {"a": "a", "b": "b", "c": "c"}), ("entombed_cooperative_v3", dict.fromkeys("abc", "team"))],
)
def test_in_atari_games_every_player_is_its_own_team_too(name: str, teams: dict[str, str]) -> None:
    """Their ROMs are not at hand; all that counts is where the class comes from, and its metadata."""

    class Console(Scripted):
        __module__ = "pettingzoo.atari.base_atari_env"
        metadata = {"name": name, "render_modes": []}  # noqa: RUF012

    assert game_of(Console(dict.fromkeys("abc", (1, "truncated"))), name=name).teams == teams


ENDS = dict.fromkeys("abc", (1, "truncated"))


class Sided(Scripted):
    def __init__(self, teams: Any = None, *, agents: str = "abc") -> None:
        super().__init__(dict.fromkeys(agents, (1, "truncated")), agents=agents)
        if teams is not None:
            self.teams = teams


def test_an_environment_may_say_so_itself() -> None:
    assert game_of(Sided({"a": "red", "b": "blue", "c": "red"}), name="sided").teams == ABA
    with pytest.raises(ValueError, match=r"without b, c; write them as --set env\.teams="):
        game_of(Sided({"a": "red"}), name="sided")


ABA = {"a": "red", "b": "blue", "c": "red"}


class Side(Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    ("said", "teams"),
    [
        ({"red": ["a", "c"], "blue": ("b",)}, ABA),
        ({"red": {"a", "c"}, "blue": {"b"}}, ABA),
        (["red", "blue", "red"], ABA),
        (("red", "blue", "red"), ABA),
        (np.array([0, 1, 0]), {"a": "0", "b": "1", "c": "0"}),
        ([["a", "c"], ["b"]], {"a": "team_0", "b": "team_1", "c": "team_0"}),
        (lambda agent: "blue" if agent == "b" else "red", ABA),
        (lambda: {"red": ["a", "c"], "blue": ["b"]}, ABA),
        ({"b": "blue", "*": "red"}, ABA),
        ({"[ac]": Side.RED, "b": Side.BLUE}, {"a": "RED", "b": "BLUE", "c": "RED"}),
        ({"a": ["a"], "b": ["b"], "c": ["c"]}, {"a": "a", "b": "b", "c": "c"}),
        ("us", dict.fromkeys("abc", "us")),
    ],
)
def test_teams_are_read_as_people_write_them(said: Any, teams: dict[str, str]) -> None:
    assert game_of(Sided(said), name="sided").teams == teams
    assert game_of(Scripted(ENDS), name="told", teams=said).teams == teams


@pytest.mark.parametrize(
    "said",
    [
        2,
        ["red", "blue"],
        ["a", "b", "c"],
        [["a"], ["b"]],
        {"red": ["a"]},
        object(),
        "{a: red, '*': b}",
        "*",
    ],
)
def test_teams_that_cannot_be_read_are_answered_with_those_that_can(said: Any) -> None:
    with pytest.raises(
        ValueError, match=r"to have each of its 3 agents, got .*write them as --set env\.teams="
    ):
        game_of(Sided(said), name="sided")
    assert game_of(Sided(said), name="sided", teams=ABA).teams == ABA


def test_teams_may_be_known_only_after_a_reset() -> None:
    class Late(Sided):
        teams: Any = None

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.teams = ABA
            return super().reset(seed, options)

    assert game_of(Late(), name="late").teams == ABA


class Around(BaseParallelWrapper[str, Any, Any]):
    teams = ABA


class Between(BaseParallelWrapper[str, Any, Any]):
    pass


def test_the_outermost_wrapper_counts() -> None:
    inner = Sided("inside")
    assert game_of(Around(inner), name="w").teams == ABA
    assert game_of(Between(Around(inner)), name="w").teams == ABA
    assert game_of(parallel_to_aec(Between(Around(inner))), name="w").teams == ABA
    assert set(game_of(Between(inner), name="w").teams.values()) == {"inside"}


def test_two_armies_are_never_one_team_unasked() -> None:
    class Armies(Sided):
        possible_agents: list[str]

        def __init__(self, *agents: str) -> None:
            super().__init__()
            self.possible_agents = list(agents)

    asked = r"suggest sides .*: --set env\.teams='\{red_\*: red, blue_\*: blue\}' .*, or env\.teams=team if"
    with pytest.raises(ValueError, match=asked):
        game_of(Armies("red_0", "red_1", "blue_0", "blue_1"), name="armies")
    for one, other in (
        ("predator_1", "prey_1"),
        ("team_0_agent_0", "team_1_agent_0"),
        ("agent_0", "adversary_0"),
    ):
        with pytest.raises(ValueError, match="who plays with whom"):
            game_of(Armies(one, other), name="armies")
    # What is said goes first; and these names say nothing of sides.
    assert game_of(Armies("red_0", "blue_0"), name="a", teams="all").teams == {
        "red_0": "all",
        "blue_0": "all",
    }
    for names in (("archer_0", "knight_0"), ("redactor_0", "reducer_0"), ("pursuer_0", "pursuer_1")):
        assert set(game_of(Armies(*names), name="a").teams.values()) == {"team"}


def test_sides_of_magent_are_known() -> None:
    class Battle(Sided):
        __module__ = "magent2.environments.combined_arms.combined_arms"
        possible_agents = ["redmelee_0", "redranged_0", "bluemele_0"]  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.possible_agents = type(self).possible_agents

    assert list(game_of(Battle(), name="magent").teams.values()) == ["red", "red", "blue"]


@pytest.mark.parametrize("name", ["mpe2.simple_spread_v3", "marl_aajr.envs.simple_spread_v3"])
def test_whoever_uses_an_environment_may_say_it(name: str) -> None:
    spec = resolve(name, {"N": 2, "env.teams": {"agent_0": "us", "agent_1": "them"}})
    assert spec.make().teams == {"agent_0": "us", "agent_1": "them"}
    assert make_batch(spec, 2).teams == {"agent_0": "us", "agent_1": "them"}


def takes_teams(teams: int) -> Sided:
    """An environment whose own argument has this name."""
    return Sided(agents="abc"[:teams])


def test_an_argument_of_the_environment_stays_its_own() -> None:
    game = resolve(f"{__name__}:takes_teams", {"teams": 2, "env.teams": "us"}).make()
    assert game.teams == {"a": "us", "b": "us"}
    configured = EnvConfig.model_validate({"name": "game", "kwargs": {"teams": 2}, "teams": ["a", "b"]})
    assert configured.kwargs == {"teams": 2, "env.teams": ["a", "b"]}


def test_a_line_says_which_sides_were_found(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "marl_aajr"):
        announce("game", ABA, attacked="red")
        announce("game", dict.fromkeys((f"agent_{i}" for i in range(9)), "team"))
    assert caplog.messages == [
        "game: 2 teams, red (a, c) against blue (b); red is attacked",
        "game: one team, team (agent_0, agent_1, agent_2, agent_3, … 9 in all)",
    ]


def test_players_of_openspiel_play_for_themselves() -> None:
    pytest.importorskip("shimmy")
    pytest.importorskip("pyspiel")
    game = resolve("shimmy:OpenSpielCompatibilityV0", {"game_name": "leduc_poker"}).make()
    assert game.teams == {"player_0": "player_0", "player_1": "player_1"}
