"""How agents end in RLlib's own episodes, sampled by its own runner from real environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.classic import tictactoe_v3
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.rllib.env.wrappers.pettingzoo_env import PettingZooEnv as StockTurnBasedEnv
from ray.tune.registry import register_env

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rllib.sampling.env import PettingZooEnv, register
from marl_aajr.rollout.environments import resolve
from tests.rllib.env_runs import config_for, runner
from tests.rollout.toy_games import Endings, Scripted

TOYS = "tests.rllib.env_runs"


def endings_of(episode: MultiAgentEpisode) -> dict[str, str]:
    """Agent -> how its own episode ended; terminated wins, as it does in RLlib's GAE."""
    return {
        agent: "terminated" if e.is_terminated else "truncated" if e.is_truncated else "open"
        for agent, e in sorted(episode.agent_episodes.items())
    }


def returns_of(episodes: Sequence[MultiAgentEpisode]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for episode in episodes:
        for agent, own in episode.agent_episodes.items():
            totals[agent] = totals.get(agent, 0.0) + own.get_return()
    return totals


SPREAD = ("simple_spread_v3", {"max_cycles": 5})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        SPREAD,
        ("simple_speaker_listener_v4", {"max_cycles": 5, "continuous_actions": True}),
        ("simple_tag_v3", {"max_cycles": 5}),
        ("mpe2.simple_spread_v3:env", {"max_cycles": 5}),
        ("butterfly/knights_archers_zombies-v11", {"max_cycles": 5}),
    ],
)
def test_a_time_limit_truncates_or_terminates_if_asked_to(name: str, kwargs: dict[str, Any]) -> None:
    for terminates, ending in ((False, "truncated"), (True, "terminated")):
        for episode in runner(name, kwargs, time_limits_terminate=terminates, envs=2).sample(num_episodes=2):
            assert set(endings_of(episode).values()) == {ending}
            assert [len(own) for own in episode.agent_episodes.values()] == [5] * len(
                resolve(name).make().possible_agents
            )


def test_values_bootstrap_at_a_time_limit_and_not_where_it_terminates() -> None:
    for terminates, bootstrapped in ((False, 1.0), (True, 0.0)):
        spec = resolve(*SPREAD)
        agents = spec.make().possible_agents
        config = (
            PPOConfig()
            .environment(register(spec, time_limits_terminate=terminates))
            .env_runners(num_env_runners=0)
            .multi_agent(policies=set(agents), policy_mapping_fn=lambda agent, *_, **__: agent)
            .training(gamma=0.9)
        )
        sampler = MultiAgentEnvRunner(config)
        learner = config.build_learner(spaces=sampler.get_spaces())
        episodes = sampler.sample(num_episodes=1)
        own = episodes[0].agent_episodes["agent_0"]
        final = torch.as_tensor(own.get_observations(-1))[None]
        value = learner.module["agent_0"].compute_values({Columns.OBS: final}).item()
        assert abs(value) > 1e-3
        target = own.get_rewards(-1) + bootstrapped * 0.9 * value
        batch = learner._learner_connector(
            rl_module=learner.module, batch={}, episodes=episodes, shared_data={}
        )
        # Row 4 is the fifth and last step; row 5 is RLlib's phantom row.
        assert batch["agent_0"]["value_targets"][4] == pytest.approx(target, abs=1e-5)


@pytest.mark.parametrize(
    ("endings", "steps"),
    [
        # Early ends stay what they were, whoever is last.
        ({"a": (2, "terminated"), "b": (3, "truncated"), "c": (4, "terminated")}, 4),
        ({"a": (2, "terminated"), "b": (4, "truncated"), "c": (4, "truncated")}, 4),
        # A mixed last step ends the episode, each in its own way.
        ({"a": (2, "truncated"), "b": (3, "truncated"), "c": (3, "terminated")}, 3),
        ({"a": (3, "terminated"), "b": (3, "truncated"), "c": (3, "truncated")}, 3),
        ({"a": (3, "terminated"), "b": (3, "terminated"), "c": (3, "terminated")}, 3),
        # An environment that sets both flags means a terminal state.
        ({"a": (3, "both"), "b": (3, "truncated"), "c": (3, "both")}, 3),
        ({"a": (3, "both"), "b": (2, "truncated"), "c": (3, "terminated")}, 3),
    ],
)
def test_every_agent_ends_in_its_own_way(endings: Endings, steps: int) -> None:
    ways = {a: "truncated" if how == "truncated" else "terminated" for a, (_, how) in endings.items()}
    episodes = runner(f"{TOYS}:scripted", {"endings": endings}, envs=2).sample(num_episodes=4)
    assert len(episodes) == 4
    for episode in episodes:
        assert episode.is_truncated == ((steps, "truncated") in endings.values())
        assert episode.is_terminated == (not episode.is_truncated)
        assert len(episode) == steps
        assert endings_of(episode) == ways
        lengths = {agent: len(own) for agent, own in episode.agent_episodes.items()}
        assert lengths == {agent: at for agent, (at, _) in endings.items()}
        assert returns_of([episode]) == {
            "a": endings["a"][0],
            "b": 2.0 * endings["b"][0],
            "c": 3.0 * endings["c"][0],
        }


def stock_spread(_: Any) -> ParallelPettingZooEnv:
    return ParallelPettingZooEnv(simple_spread_v3.parallel_env(max_cycles=5))


def test_the_stock_wrapper_terminates_at_a_time_limit() -> None:
    """The fault that this wrapper exists for; if RLlib repairs it, both can go."""
    register_env("stock_spread", stock_spread)
    agents = resolve(*SPREAD).make().possible_agents
    (episode,) = MultiAgentEnvRunner(config_for("stock_spread", agents)).sample(num_episodes=1)
    assert set(endings_of(episode).values()) == {"terminated"}


@pytest.mark.parametrize("name", ["classic/tictactoe-v3", "classic/leduc_holdem-v4"])
def test_turn_based_games_with_masks_are_played_to_their_end(name: str) -> None:
    for episode in runner(name, envs=2).sample(num_episodes=4):
        assert set(endings_of(episode).values()) == {"terminated"}
        assert sum(returns_of([episode]).values()) == 0.0
        assert sum(len(own) for own in episode.agent_episodes.values()) == len(episode)


def test_a_player_out_before_the_others_have_moved_does_not_end_the_episode() -> None:
    endings = {"a": (1, "terminated"), "b": (4, "truncated"), "c": (4, "terminated")}
    for episode in runner(f"{TOYS}:circle", {"endings": endings}).sample(num_episodes=3):
        assert len(episode) == 4
        assert endings_of(episode) == {"a": "terminated", "b": "truncated", "c": "terminated"}


def test_agents_that_appear_later_are_waited_for() -> None:
    endings = {"a": (2, "truncated"), "b": (5, "terminated"), "c": (6, "truncated")}
    kwargs = {"endings": endings, "arrivals": {"b": 2, "c": 3}}
    for episode in runner(f"{TOYS}:scripted", kwargs).sample(num_episodes=2):
        assert endings_of(episode) == {"a": "truncated", "b": "terminated", "c": "truncated"}
        assert returns_of([episode]) == {"a": 2.0, "b": 6.0, "c": 9.0}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (f"{TOYS}:circle", {"endings": dict.fromkeys("abc", (7, "truncated"))}),
        (
            f"{TOYS}:scripted",
            {"endings": {"a": (2, "terminated"), "b": (5, "truncated"), "c": (6, "truncated")}},
        ),
    ],
)
def test_episodes_cut_into_fragments_lose_no_step_and_no_reward(name: str, kwargs: dict[str, Any]) -> None:
    whole = runner(name, kwargs).sample(num_episodes=2)
    sampler = runner(name, kwargs)
    pieces = [e for _ in range(sum(map(len, whole))) for e in sampler.sample(num_timesteps=1)]
    assert returns_of(pieces) == returns_of(whole)
    assert sum(e.agent_steps() for e in pieces) == sum(e.agent_steps() for e in whole)
    assert sum(e.is_done for e in pieces) == 2


def test_with_terminating_time_limits_it_is_the_stock_wrapper_step_by_step() -> None:
    register_env("stock_spread", stock_spread)
    register_env("stock_tictactoe", lambda _: StockTurnBasedEnv(tictactoe_v3.env()))
    for stock, name, kwargs in (
        ("stock_spread", *SPREAD),
        ("stock_tictactoe", "classic/tictactoe-v3", {}),
    ):
        ours = runner(name, kwargs, time_limits_terminate=True)
        theirs = MultiAgentEnvRunner(config_for(stock, ours.env.envs[0].unwrapped.possible_agents))
        for a, b in zip(ours.sample(num_episodes=3), theirs.sample(num_episodes=3), strict=True):
            assert (a.is_terminated, a.is_truncated) == (b.is_terminated, b.is_truncated)
            assert set(a.agent_episodes) == set(b.agent_episodes)
            for agent, own in a.agent_episodes.items():
                other = b.agent_episodes[agent]
                assert (own.is_terminated, own.is_truncated) == (
                    other.is_terminated,
                    other.is_truncated,
                )
                assert own.get_rewards().tolist() == other.get_rewards().tolist()
                assert own.get_actions().tolist() == other.get_actions().tolist()


class Forgetful(Scripted):
    """Draws fresh entropy at every reset without a seed, as some environments do."""

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.luck = np.random.default_rng(seed).uniform()
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, *rest = super().step(actions)
        return obs, {agent: reward + self.luck for agent, reward in rewards.items()}, *rest


def forgetful() -> Forgetful:
    return Forgetful(dict.fromkeys("abc", (2, "truncated")))


def test_one_seed_repeats_all_episodes_even_if_the_environment_forgets_it() -> None:
    first, again = (
        [returns_of([e]) for e in runner(f"{__name__}:forgetful", envs=2).sample(num_episodes=6)]
        for _ in range(2)
    )
    assert first == again
    assert len({episode["a"] for episode in first}) == 6


def test_order_and_spaces_follow_possible_agents_and_reset_keeps_infos() -> None:
    env = PettingZooEnv({"env": "simple_world_comm_v3"})
    names = ["leadadversary_0", "adversary_0", "adversary_1", "adversary_2", "agent_0", "agent_1"]
    obs, infos = env.reset(seed=0)
    assert env.possible_agents == list(env.observation_spaces) == list(obs) == list(infos) == names
    assert env.get_action_space("leadadversary_0") == spaces.Discrete(20)
    assert env.get_action_space("agent_0") == spaces.Discrete(5)
    turns = PettingZooEnv({"env": f"{TOYS}:circle", "kwargs": {"endings": {}}})
    assert turns.reset()[1] == {"a": {"first": True}}


def test_it_renders() -> None:
    env = PettingZooEnv({"env": "simple_spread_v3", "kwargs": {"render_mode": "rgb_array"}})
    env.reset(seed=0)
    assert env.render_mode == "rgb_array"
    assert env.render().shape == (700, 700, 3)
    env.close()


def test_different_arguments_are_registered_under_different_names() -> None:
    three, four = (register("simple_spread_v3", kwargs={"N": n}) for n in (3, 4))
    assert (
        len(
            {
                three,
                four,
                register("simple_spread_v3"),
                register("simple_spread_v3", time_limits_terminate=True),
            }
        )
        == 4
    )
    agents = [f"agent_{i}" for i in range(3)]
    assert runner("simple_spread_v3", {"N": 3}).env.envs[0].unwrapped.possible_agents == agents


def test_a_fault_of_the_environment_comes_through_the_runner_with_its_name() -> None:
    sampler = runner(f"{TOYS}:scripted", {"endings": dict.fromkeys("abc", (9, "truncated")), "broken_at": 3})
    with pytest.raises(RuntimeError) as caught:
        sampler.sample(num_episodes=1)
    assert isinstance(caught.value.__cause__, EnvironmentFault)
    assert f"environment {TOYS}:scripted, step 3: the reward of agent 'b' is nan" in str(
        caught.value.__cause__
    )


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \['N', 'env'\]; put arguments of the environment into"):
        PettingZooEnv({"env": "simple_spread_v3", "N": 3})
    with pytest.raises(ValueError, match="expected env_config with env"):
        PettingZooEnv()
    with pytest.raises(ValueError, match="unknown environment 'spread'"):
        PettingZooEnv({"env": "spread"})
