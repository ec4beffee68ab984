"""Environments of Gymnasium and RLlib: who acts, who earns what, and who is told what about a wrong one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.test import parallel_api_test
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from torch import nn

from marl_aajr import Victim, evaluate
from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.pettingzoo import attacked
from marl_aajr.rollout.adapters import to_pettingzoo
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_games import game_of

HERE = "tests.rollout.test_adapters"
SEEN = spaces.Box(-1.0, 1.0, (3,), np.float32)
FLATTEN = r"FlattenObservation.* supersuit\.observation_lambda_v0"


class Forage(gymnasium.Env[Any, Any]):
    """Agent i earns i times its action; everybody sees the step (lbforaging and rware are of this kind)."""

    n_agents = 3

    def __init__(self, size: int = 2) -> None:
        self.observation_space = spaces.Tuple([spaces.Box(0.0, 9.0, (size,), np.float32)] * self.n_agents)
        self.action_space = spaces.Tuple([spaces.Discrete(4)] * self.n_agents)

    def _obs(self) -> Any:
        return tuple(np.full(space.shape, self.t, np.float32) for space in self.observation_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._obs(), [i * a for i, a in enumerate(action)], self.t == 3, False, {}


gymnasium.register("Forage-v0", f"{HERE}:Forage")


class Bits(gymnasium.Env[Any, Any]):
    """Actions are three bits, the reward their number; what is seen has the space that is asked for."""

    def __init__(self, seen: spaces.Space[Any] = SEEN) -> None:
        self.observation_space, self.action_space = seen, spaces.MultiBinary(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is none of its actions"
        return self.observation_space.sample(), float(action.sum()), True, False, {}


class Rooms(MultiAgentEnv):
    """Two agents of RLlib act together; "a" leaves at step 2, "b" is cut off at step 4."""

    def __init__(self, *, late: bool = False, silent: bool = False) -> None:
        super().__init__()
        self.late, self.silent = late, silent
        self.possible_agents = self.agents = ["a", "b"]
        self.observation_spaces = dict.fromkeys(self.agents, SEEN)
        self.action_spaces = dict.fromkeys(self.agents, spaces.Discrete(2))

    def _obs(self, *agents: str) -> dict[str, Any]:
        return {agent: np.full(3, self.t / 10, np.float32) for agent in agents}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._obs("a", "b"), {}

    def step(self, action_dict: Any) -> Any:
        self.t += 1
        ending = self.t == 4
        here = ("a", "b") if self.t == 1 or (self.late and self.t == 3) else ("b",)
        obs = {} if ending and self.silent else self._obs(*here)
        rewards = dict.fromkeys(action_dict, 1.0)
        terminateds = {"__all__": False} | ({"a": True} if self.t == 2 else {})
        return obs, rewards, terminateds, {"__all__": ending}, {}


class Turns(MultiAgentEnv):
    """Two players of RLlib in turn: whoever moves pays 1 to the other, who has not asked."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.length = config.get("length", 4)
        assert config.worker_index == 0  # RLlib gives an EnvContext, not a dict
        self.possible_agents = self.agents = ["first", "second"]
        self.observation_spaces = dict.fromkeys(self.agents, SEEN)
        self.action_spaces = dict.fromkeys(self.agents, spaces.Discrete(2))

    def _obs(self, *agents: str) -> dict[str, Any]:
        return {agent: self.np_random.uniform(-1, 1, 3).astype(np.float32) for agent in agents}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._obs("first"), {}

    def step(self, action_dict: Any) -> Any:
        (mover,) = action_dict
        self.t += 1
        over = self.t == self.length
        obs = self._obs(*(self.agents if over else [self.agents[self.t % 2]]))
        return obs, {("second" if mover == "first" else "first"): 1.0}, {"__all__": over}, {}, {}


class Spaceless(MultiAgentEnv):
    possible_agents = ["a"]  # noqa: RUF012


def game(name: str, **kwargs: Any) -> Game:
    return resolve(f"{HERE}:{name}", kwargs).make()


def play(played: Game) -> list[GameStep]:
    """The rest of an episode, by action 0."""
    turns: list[GameStep] = []
    while not (turns and turns[-1].over):
        turns.append(played.step(dict.fromkeys(played.possible_agents, 0)))
    return turns


def test_one_agent_of_gymnasium_is_a_team_and_plays_as_there() -> None:
    ours, theirs = resolve("gymnasium:CartPole-v1").make(), gymnasium.make("CartPole-v1")
    assert ours.teams == {"agent": "team"}
    turn, (seen, _) = ours.reset(seed=5), theirs.reset(seed=5)
    while not turn.over:
        np.testing.assert_array_equal(turn.obs["agent"], seen)
        turn = ours.step({"agent": 1})
        seen, reward, terminated, truncated, _ = theirs.step(1)
        told = turn.rewards["agent"], turn.terminations["agent"], turn.truncations["agent"]
        assert told == (reward, terminated, truncated)
    assert turn.terminations["agent"]


def test_a_time_limit_of_gymnasium_is_a_truncation_and_arguments_reach_the_environment() -> None:
    batch = make_batch(resolve("Pendulum-v1", {"g": 9.0, "max_episode_steps": 3}), 2)
    batch.reset(seed=0)
    for _ in range(3):
        step = batch.step({"agent": torch.zeros(2, 1)})
    assert step.truncations["agent"].all()
    assert not step.terminations["agent"].any()
    assert step.final_obs["agent"].abs().sum() > 0


@pytest.mark.parametrize("name", [f"{HERE}:Forage-v0", f"{HERE}:Forage"])
def test_tuples_with_a_part_for_each_of_n_agents_are_agents(name: str) -> None:
    played = resolve(name, {"size": 5}).make()
    assert played.possible_agents == ("agent_0", "agent_1", "agent_2")
    assert played.observation_spaces["agent_1"].shape == (5,)
    played.reset(seed=0)
    for _ in range(3):
        turn = played.step({"agent_0": 1, "agent_1": 2, "agent_2": 3})
    assert turn.rewards == {"agent_0": 0.0, "agent_1": 2.0, "agent_2": 6.0}
    assert turn.over


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CartPole-v7", r"unknown environment 'CartPole-v7' \(did you mean CartPole-v1"),
        (f"{HERE}:Forage-v3", "that tests.rollout.test_adapters registers, .*v0"),
        ("nowhere:Forage-v0", "pip install nowhere"),
    ],
)
def test_a_name_that_gymnasium_does_not_have_is_refused_with_those_that_it_has(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolve(name)


@pytest.mark.parametrize("env", [gymnasium.make("CartPole-v1"), Forage(), Rooms()])
def test_what_is_played_together_keeps_pettingzoos_contract(env: Any) -> None:
    parallel_api_test(to_pettingzoo(env), num_cycles=30)


def test_agents_of_rllib_end_by_their_own_flag_or_by_that_of_all() -> None:
    played = game("Rooms")
    assert played.reset(seed=0).acting == ("a", "b")
    assert played.step({"a": 0, "b": 0}).acting == ("a", "b")
    left = played.step({"a": 0, "b": 0})
    assert (left.acting, left.terminations["a"], left.rewards["a"]) == (("b",), True, 1.0)
    _, cut = (played.step({"b": 0}) for _ in range(2))
    assert (cut.over, cut.truncations, cut.terminations) == (True, {"b": True}, {"b": False})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"late": True}, "step 3: agent 'a' came back after it had ended"),
        ({"silent": True}, "step 4: agent 'b' was truncated without a last observation"),
    ],
)
def test_what_rllib_does_not_allow_is_a_fault(fault: dict[str, bool], says: str) -> None:
    played = game("Rooms", **fault)
    played.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=says):
        play(played)


def test_players_in_turn_earn_between_their_turns() -> None:
    played = game("Turns", length=5)
    turns = [played.reset(seed=0), *play(played)]
    movers = [agent for turn in turns for agent in turn.acting]
    earned = {agent: sum(turn.rewards.get(agent, 0.0) for turn in turns) for agent in played.possible_agents}
    assert movers == ["first", "second", "first", "second", "first"]
    assert earned == {"first": 2.0, "second": 3.0}


def test_policies_are_evaluated_in_an_environment_of_rllib() -> None:
    spec = resolve(f"{HERE}:Turns", {"length": 6})
    victim = Victim.from_policies(nn.Linear(3, 2), to_pettingzoo(Turns(EnvContext({}, worker_index=0))))
    result = evaluate(victim, spec, attacks=[("fgsm", 0.1)], episodes=2)
    assert result.clean_return == result.attacks[0].mean == 6.0


def test_actions_of_bits_are_choices_between_two() -> None:
    network = nn.Linear(3, 6)
    nn.init.zeros_(network.weight)
    network.bias = nn.Parameter(torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    victim = Victim.from_policies(network, to_pettingzoo(Bits()))
    assert evaluate(victim, f"{HERE}:Bits", attacks=[("fgsm", 0.1)], episodes=2).clean_return == 2.0


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (spaces.Tuple([SEEN, spaces.Discrete(2)]), FLATTEN),
        (spaces.Dict({"a": SEEN, "b": SEEN}), FLATTEN),
        (spaces.Text(4), FLATTEN),
        (spaces.Sequence(SEEN), "Sequence.*; make an array of one shape of it"),
    ],
)
def test_observations_that_are_no_array_are_refused_with_a_cure(seen: spaces.Space[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_batch(resolve(f"{HERE}:Bits", {"seen": seen}), 1)


def test_legal_actions_come_from_where_maskable_ppo_asks() -> None:
    class Masked(Forage):
        n_agents = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.observation_space, self.action_space = spaces.Box(0.0, 9.0, (2,)), spaces.Discrete(4)

        def _obs(self) -> Any:
            return np.full(2, self.t, np.float32)

        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step([])
            return obs, float(action), *rest

        def action_masks(self) -> Any:
            return np.arange(4) == self.t

    network = nn.Linear(2, 4)
    found = evaluate(
        Victim.from_policies(network, to_pettingzoo(Masked())),
        resolve(lambda: gymnasium.wrappers.TimeLimit(Masked(), 9)),
        attacks=[("fgsm", 0.1)],
        episodes=1,
    )
    assert found.clean_return == 0 + 1 + 2


def test_an_interface_needs_no_base_class() -> None:
    class Written:  # as POGEMA's environments are
        def __init__(self) -> None:
            self._env = to_pettingzoo(Forage())

        def __getattr__(self, name: str) -> Any:
            return getattr(self._env, name)

    played = game_of(Written(), name="written")
    assert played.reset(seed=0).acting == ("agent_0", "agent_1", "agent_2")


def test_where_pettingzoo_is_needed_the_adapter_is_named() -> None:
    for env in (gymnasium.make("CartPole-v1"), Rooms(), "CartPole-v1"):
        with pytest.raises(ValueError, match=r"adapters\.to_pettingzoo"):
            Victim.from_policies(nn.Linear(4, 2), env)
        with pytest.raises(ValueError, match=r"adapters\.to_pettingzoo"):
            attacked(env, "fgsm", Victim.from_policies(nn.Linear(3, 2), to_pettingzoo(Rooms())))
    with pytest.raises(ValueError, match="Spaceless to say the observation space of agent 'a'"):
        game("Spaceless")
