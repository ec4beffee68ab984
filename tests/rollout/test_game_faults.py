"""What an environment or its player may not do, and who is blamed for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.utils.conversions import aec_to_parallel

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.pettingzoo_games import game_of
from tests.rollout.playing import play
from tests.rollout.toy_games import Circle, Scripted


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


def test_agents_that_do_not_move_in_a_cycle_are_not_simultaneous() -> None:
    class Claims(Circle):
        metadata = {"name": "claims_v0", "is_parallelizable": True}  # noqa: RUF012

    env = aec_to_parallel(Claims({"a": (1, "terminated"), "b": (9, "truncated")}, agents="ab"))
    with pytest.raises(EnvironmentFault, match="agent 'a' is to move where 'b' should"):
        play(game_of(env, name="claims"), seed=0)


class Respawning(Scripted):
    """Agent a ends at step 2 and is there again at step 4, or is called alive in spite of its end."""

    def __init__(self, how: str) -> None:
        super().__init__({"a": (2, "terminated"), "b": (8, "truncated"), "c": (8, "truncated")})
        self.how = how

    def step(self, actions: dict[str, Any]) -> Any:
        self.agents = list(actions)
        obs, rewards, terminations, truncations, infos = super().step(actions)
        if self.how == "in place" and self.t in (2, 3):
            self.agents = ["a", *self.agents]
            terminations["a"], truncations["a"] = self.t == 2, False
        if self.how == "listed" and self.t >= 2:  # out, but never taken off the list: no new life
            self.agents = ["a", *(other for other in self.agents if other != "a")]
            terminations["a"], truncations["a"], obs["a"] = True, False, self._obs("a")
        if self.how == "later" and self.t == 4:
            self.agents = ["a", *self.agents]
            obs["a"], terminations["a"], truncations["a"] = self._obs("a"), False, False
        return obs, rewards, terminations, truncations, infos


@pytest.mark.parametrize(("how", "step"), [("later", 4), ("in place", 3)])
def test_an_agent_that_comes_back_is_a_fault_and_does_not_stand_still(how: str, step: int) -> None:
    says = f"step {step}: agent 'a' came back after it had ended; give a new life a new name"
    with pytest.raises(EnvironmentFault, match=says):
        play(game_of(Respawning(how), name="lives"), seed=0)


class RespawningCircle(Circle):
    def __init__(self) -> None:
        super().__init__({"a": (2, "terminated"), "b": (9, "truncated")}, agents="ab")

    def step(self, action: Any) -> None:
        super().step(action)
        if self.t == 4 and "a" not in self.agents:
            self.agents = ["a", *self.agents]
            self.rewards["a"], self._cumulative_rewards["a"], self.infos["a"] = 0.0, 0.0, {}
            self.terminations["a"] = self.truncations["a"] = False
            self.agent_selection = "a"


def test_an_agent_that_is_out_may_stay_on_the_list() -> None:
    turns = play(game_of(Respawning("listed"), name="lives"), seed=0)
    assert len(turns) == 9
    assert "a" not in turns[3].rewards


def test_nor_does_it_in_turns() -> None:
    with pytest.raises(EnvironmentFault, match="agent 'a' came back after it had ended"):
        play(game_of(RespawningCircle(), name="lives"), seed=0)


class Old(Scripted):
    """Returns what PettingZoo did before version 1.23."""

    def __init__(self, method: str) -> None:
        super().__init__(dict.fromkeys("ab", (9, "truncated")), agents="ab")
        self.method = method

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = super().reset(seed, options)
        return obs if self.method == "reset" else (obs, infos)

    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, terminations, _, infos = super().step(actions)
        return obs, rewards, terminations, infos


class OldCircle(Circle):
    def last(self, observe: bool = True) -> Any:
        obs, reward, terminated, _, info = super().last(observe)
        return obs, reward, terminated, info


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (
            Old("reset"),
            r"returned dict from reset, expected \(observations, infos\) as in PettingZoo since 1.23",
        ),
        (Old("step"), r"returned 4 values from step, expected \(observations, rewards, terminations, trunc"),
        (
            OldCircle(dict.fromkeys("abc", (9, "truncated"))),
            r"returned 4 values from last, expected \(observ",
        ),
    ],
)
def test_what_an_old_environment_returns_is_answered_with_what_is_expected(env: Any, says: str) -> None:
    with pytest.raises(EnvironmentFault, match=says):
        play(game_of(env, name="old"), seed=0)


class Late(Scripted):
    """Knows its agents and their spaces only after a reset."""

    def __init__(self, *, lists: bool = False) -> None:
        self.endings, self.arrivals, self.broken_at = dict.fromkeys("abc", (3, "truncated")), {}, None
        self.known: dict[str, Any] = {}
        self.lists = lists
        if lists:
            self.possible_agents = list("abc")

    def observation_space(self, agent: str) -> Any:
        return self.known[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.possible_agents = list("abc")
        self.known = dict.fromkeys("abc", spaces.Box(-1.0, 99.0, (2,), np.float32))
        return super().reset(seed, options)


@pytest.mark.parametrize("lists", [False, True])
def test_spaces_may_be_known_only_after_a_reset(lists: bool) -> None:
    turns = play(game_of(Late(lists=lists), name="late"), seed=0)
    assert len(turns) == 4
    assert list(turns[0].obs) == ["a", "b", "c"]


def test_an_environment_that_never_says_its_spaces_is_told_what_is_expected() -> None:
    class Never(Late):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            return Scripted.reset(self, seed, options)

    with pytest.raises(ValueError, match=r"to say its possible_agents and their spaces.*KeyError"):
        game_of(Never(lists=True), name="never")


def test_a_reward_that_float32_does_not_hold_is_a_fault() -> None:
    class Huge(Scripted):
        def step(self, actions: dict[str, Any]) -> Any:
            obs, rewards, *rest = super().step(actions)
            return obs, dict.fromkeys(rewards, 1e39), *rest

    with pytest.raises(EnvironmentFault, match=r"reward of agent 'a' is 1e\+39, .* no number of float32"):
        play(game_of(Huge(dict.fromkeys("abc", (3, "truncated"))), name="huge"), seed=0)


@pytest.mark.parametrize("reward", [np.array([1.0, 2.0]), [1.0, 2.0], np.zeros((1, 2))])
def test_a_reward_of_several_parts_is_told_what_to_do(reward: Any) -> None:
    class Several(Scripted):
        def step(self, actions: dict[str, Any]) -> Any:
            obs, rewards, *rest = super().step(actions)
            return obs, dict.fromkeys(rewards, reward), *rest

    env = Several(dict.fromkeys("abc", (3, "truncated")))
    with pytest.raises(EnvironmentFault, match=r"agent 'a' is .* weigh its parts in a wrapper"):
        play(game_of(env, name="goals"), seed=0)
