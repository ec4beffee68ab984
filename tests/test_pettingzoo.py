"""Attacks around PettingZoo environments of both kinds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from marl_aajr.envs import congestion_v0
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo.classic import connect_four_v3
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils.wrappers import BaseWrapper
from torch import nn

from marl_aajr.attacks import FGSM, Attack
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.pettingzoo import attacked
from marl_aajr.rollout.environments import resolve
from marl_aajr.victims import ObservationFilter, Recurrent, Victim
from tests.victims.teams import network

FLOATS = gym.spaces.Dict(
    {
        "observation": gym.spaces.Box(0, 1, (6, 7, 2), np.float32),
        "action_mask": gym.spaces.Box(0, 1, (7,), np.int8),
    }
)


class Floats(BaseWrapper[str, Any, Any]):
    """connect_four with floating-point boards, as an attack needs them."""

    def observation_space(self, agent: str) -> Any:
        return FLOATS

    def observe(self, agent: str) -> Any:
        seen = self.env.observe(agent)
        return {**seen, "observation": seen["observation"].astype(np.float32)}


@dataclass(frozen=True, kw_only=True)
class Counting(Attack):
    """Adds the number of agents that it sees at once."""

    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "for tests"
    access: ClassVar[Any] = "none"
    acts_jointly: ClassVar[bool] = True

    actions: Any = field(default=None, compare=False)

    def choose_actions(self, seen: Any, *, generator: torch.Generator) -> Any:
        return {agent: torch.full((len(obs), 1), float(len(seen))) for agent, obs in seen.items()}

    def with_actions(self, actions: torch.Tensor) -> Counting:
        return replace(self, actions=actions)

    def run(self, policy: Policy, obs: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        return self.actions.expand_as(obs)


def connect_four() -> Any:
    return Floats(connect_four_v3.env())


def spread(**kwargs: Any) -> Any:
    return simple_spread_v3.parallel_env(**{"max_cycles": 6, **kwargs})


def players(env: Any, **settings: Any) -> Victim:
    """A random team for an environment."""
    nets = {}
    for i, agent in enumerate(env.possible_agents):
        space = env.observation_space(agent)
        shape = getattr(space, "spaces", {"observation": space})["observation"].shape
        acts = env.action_space(agent)
        outputs = int(acts.n) if hasattr(acts, "n") else 2 * int(np.prod(acts.shape))
        features = int(np.prod(shape))
        nets[agent] = nn.Sequential(nn.Flatten(), network(outputs, features=features, seed=i))
    return Victim.from_policies(nets, env, **settings)


def one_network(env: Any, net: nn.Module | None = None, **settings: Any) -> Victim:
    return Victim.from_policies(net or network(5, features=18), env, **settings)


PARALLEL: dict[str, Callable[[], Any]] = {"spread": spread, "ours": congestion_v0.parallel_env}
TURN_BASED: dict[str, Callable[[], Any]] = {
    "connect four": connect_four,
    "spread": lambda: simple_spread_v3.env(max_cycles=6),
}


@pytest.mark.filterwarnings("ignore")
class TestIsAnEnvironment:
    @pytest.mark.parametrize("make", PARALLEL.values(), ids=PARALLEL)
    def test_parallel(self, make: Callable[[], Any]) -> None:
        def build() -> Any:
            return attacked(make(), "fgsm", players(make()), epsilon=0.3)

        parallel_api_test(build(), num_cycles=8)
        parallel_seed_test(build, num_cycles=8)

    @pytest.mark.parametrize("make", TURN_BASED.values(), ids=TURN_BASED)
    def test_turn_based(self, make: Callable[[], Any]) -> None:
        def build() -> Any:
            return attacked(make(), "fgsm", players(make()), epsilon=0.3)

        api_test(build(), num_cycles=8)
        seed_test(build, num_cycles=8)


class TestAttacked:
    @pytest.mark.parametrize("recurrent", [False, True])
    def test_earns_what_the_evaluation_says(self, recurrent: bool) -> None:
        """One game after the other with the wrapper, against batches: a deterministic attack."""
        net = None
        if recurrent:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                net = Recurrent(nn.Linear(18, 8), nn.Tanh(), nn.LSTM(8, 8), nn.Linear(8, 5))
        victim = one_network(spread(), net)
        spec = resolve("mpe2.simple_spread_v3", {"max_cycles": 6})
        expected = evaluate(victim, spec, attacks=[("fgsm", 0.5)], episodes=3, num_envs=3).attacks[0]
        assert expected.success_rate > 0
        env = attacked(spread(), "fgsm", victim, epsilon=0.5)
        for i, total in enumerate(expected.returns):
            seed = np.random.SeedSequence(0, spawn_key=(i, 0)).generate_state(1)[0] >> 1
            obs, _ = env.reset(seed=int(seed))
            memory, earned = victim.memory(), 0.0
            while env.agents:
                obs, rewards, *_ = env.step(victim.act(obs, memory=memory))
                earned += sum(rewards.values())
            assert earned == pytest.approx(total, rel=1e-5)

    def test_stays_within_epsilon_and_leaves_the_others_alone(self) -> None:
        env = attacked(spread(), "pgd-margin", one_network(spread()), epsilon=0.25, agents=["agent_1"])
        true = spread()
        shown, _ = env.reset(seed=3)
        seen, _ = true.reset(seed=3)
        assert shown["agent_0"] is not seen["agent_0"]
        np.testing.assert_array_equal(shown["agent_0"], seen["agent_0"])
        moved = np.abs(shown["agent_1"] - seen["agent_1"])
        assert 0.2 < moved.max() <= 0.25 + 1e-6
        assert shown["agent_1"].dtype == seen["agent_1"].dtype

    def test_raw_epsilon_is_the_environments_whatever_the_filter(self) -> None:
        mean, std = torch.linspace(-1, 1, 18), torch.linspace(0.1, 3, 18)
        seen = {a: ObservationFilter(mean=mean, std=std) for a in ("agent_0", "agent_1", "agent_2")}
        victim = one_network(spread(), filters=seen)
        true, _ = spread().reset(seed=0)
        with pytest.raises(ValueError, match="expected units 'raw'"):
            attacked(spread(), "fgsm", victim, epsilon=0.1)
        for units, size in (("raw", torch.full((18,), 0.1)), ("network", 0.1 * (std + 1e-6))):
            shown, _ = attacked(spread(), "fgsm", victim, epsilon=0.1, units=units).reset(seed=0)  # type: ignore[arg-type]
            moved = torch.from_numpy(np.abs(shown["agent_2"] - true["agent_2"]))
            assert (moved <= size + 1e-5).all()
            assert ((moved - size).abs() < 1e-5).sum() >= 16, "the sign of nearly every feature's gradient"

    def test_a_surrogate_fools_another_policy(self) -> None:
        """The attack knows another policy than the one that plays; in one line around the environment."""
        env = attacked(spread(), FGSM(perturbations=PerturbationSet(epsilon=1.0)), one_network(spread()))
        obs, _ = env.reset(seed=0)
        true, _ = spread().reset(seed=0)
        assert all(not np.array_equal(obs[agent], true[agent]) for agent in obs)

    def test_looking_twice_shows_the_same_and_moves_no_memory(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            victim = one_network(spread(), Recurrent(nn.GRU(18, 6), nn.Linear(6, 5)))

        def game(looks: int) -> list[Any]:
            env = attacked(simple_spread_v3.env(max_cycles=3), "noise-worst", victim, epsilon=0.5)
            env.reset(seed=1)
            found = []
            for _agent in env.agent_iter():
                for _ in range(looks):
                    obs, _, terminated, truncated, _ = env.last()
                    env.observe("agent_0")
                found.append(obs)
                env.step(None if terminated or truncated else 1)
            return found

        for once, thrice in zip(game(1), game(3), strict=True):
            np.testing.assert_array_equal(once, thrice)

    def test_episodes_without_a_seed_differ_and_are_repeatable(self) -> None:
        def two_episodes() -> list[Any]:
            env = attacked(spread(), "noise", one_network(spread()), epsilon=0.5, seed=7)
            return [
                env.reset(seed=0)[0]["agent_0"],
                env.reset(seed=0)[0]["agent_0"],
                env.reset(seed=1)[0]["agent_0"],
            ]

        first, again, other = two_episodes()
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(two_episodes(), [first, again, other])

    def test_an_adversary_that_acts_for_all_sees_all(self) -> None:
        """Three policies, three batches, and one decision: how many agents there are to see."""
        env = attacked(spread(), Counting(perturbations=PerturbationSet(epsilon=3.0)), players(spread()))
        shown, _ = env.reset(seed=0)
        true, _ = spread().reset(seed=0)
        for agent, obs in shown.items():
            np.testing.assert_allclose(obs - true[agent], 3.0, atol=1e-5)

    def test_masks_stay_true(self) -> None:
        env = attacked(connect_four(), "pgd-margin", players(connect_four()), epsilon=0.5)
        env.reset(seed=0)
        shown, true = env.observe("player_0"), env.unwrapped.observe("player_0")
        np.testing.assert_array_equal(shown["action_mask"], true["action_mask"])
        assert not np.array_equal(shown["observation"], true["observation"])
        assert env.observation_space("player_0").contains(shown)
        assert not connect_four().observation_space("player_0").contains(shown)


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"agents": ["agent_9"]}, "expected agents out of agent_0"),
            ({"attack": "pdg"}, "pgd"),
            ({"attack": "fgsm", "epsilon": None}, "expected epsilon for the attack 'fgsm'"),
            ({"attack": "critic"}, "expected a victim with a critic"),
            ({"attack": "robust-sarsa"}, "expected an attack that is ready"),
            ({"attack": ["pgd"]}, r"expected the name of an attack, or an Attack, got \['pgd'\]"),
            (
                {"victim": players(simple_tag_v3.parallel_env())},
                r"expected a victim for the observations Box.*\(18,\).*, got one for Box.*\(14,\)",
            ),
            ({"victim": nn.Linear(18, 5)}, r"expected a victim, got a Linear; .*Victim.from_policies"),
            ({"env": nn.Linear(1, 1)}, "expected a PettingZoo environment, got Linear"),
        ],
    )
    def test_before_anything_is_played(self, settings: dict[str, Any], message: str) -> None:
        given = {"env": spread(), "attack": "pgd", "victim": one_network(spread()), "epsilon": 0.1} | settings
        env, attack, victim = given.pop("env"), given.pop("attack"), given.pop("victim")
        with pytest.raises(ValueError, match=message):
            attacked(env, attack, victim, **given)

    def test_integers_cannot_be_moved_a_little(self) -> None:
        with pytest.raises(ValueError, match=r"expected float observations .*DtypeObservation\(env"):
            attacked(connect_four_v3.env(), "pgd", players(connect_four_v3.env()), epsilon=0.1)

    def test_gradients_that_are_not_there(self) -> None:
        class Rounded(nn.Module):
            def forward(self, obs: torch.Tensor) -> torch.Tensor:
                return obs.detach()[:, :5]

        with pytest.raises(ValueError, match="expected a policy with gradients for the attack 'pgd'"):
            attacked(spread(), "pgd", one_network(spread(), Rounded()), epsilon=0.1)
        attacked(spread(), "square", one_network(spread(), Rounded()), epsilon=0.1).reset(seed=0)


def test_needs_no_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, marl_aajr.pettingzoo; sys.exit('ray' in sys.modules)"],
        check=False,
    )
    assert done.returncode == 0
