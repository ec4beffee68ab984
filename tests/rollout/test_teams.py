"""Who plays on whose side."""

from __future__ import annotations

from typing import Any

import mpe2
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

from marl_aajr.rollout.pettingzoo_games import game_of
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


def test_an_environment_may_say_so_itself() -> None:
    class Sided(Scripted):
        teams = {"a": "red", "b": "blue", "c": "red"}  # noqa: RUF012

    ends = dict.fromkeys("abc", (1, "truncated"))
    assert game_of(Sided(ends), name="sided").teams == {"a": "red", "b": "blue", "c": "red"}
    Sided.teams = {"a": "red"}
    with pytest.raises(ValueError, match=r"without b, c; write them as --set env\.teams="):
        game_of(Sided(ends), name="sided")
