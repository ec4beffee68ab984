"""A few lines make a victim of plain torch policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo.classic import connect_four_v3
from pettingzoo.utils.wrappers import BaseParallelWrapper
from torch import Tensor, nn

from marl_aajr.evaluation import evaluate
from marl_aajr.rollout.environments import resolve
from marl_aajr.victims import Victim
from tests.networks import generator
from tests.victims.teams import network


def test_one_network_for_all_agents_is_evaluated() -> None:
    victim = Victim.from_policies(network(5, features=18), simple_spread_v3.parallel_env())
    assert victim.module_of == dict.fromkeys(("agent_0", "agent_1", "agent_2"), "policy")
    result = evaluate(victim, "mpe2.simple_spread_v3", attacks=[("pgd-margin", 0.5)], episodes=3)
    assert result.attacks[0].objective_gain > 0
    assert evaluate(victim, resolve("mpe2.simple_spread_v3"), episodes=3).clean == result.clean


def test_agents_of_one_network_share_a_module() -> None:
    env = simple_tag_v3.parallel_env()
    hunter = network(5, features=16)
    policies = {agent: hunter for agent in env.possible_agents if "adversary" in agent}
    victim = Victim.from_policies({**policies, "agent_0": network(5, features=14)}, env)
    assert set(victim.modules) == {"adversary_0", "agent_0"}
    assert victim.agents_of("adversary_0") == ("adversary_0", "adversary_1", "adversary_2")


def test_gaussian_actions_are_clipped_to_their_bounds_and_not_rescaled() -> None:
    env = simple_spread_v3.parallel_env(continuous_actions=True)
    victim = Victim.from_policies(network(10, features=18), env)
    outputs = torch.tensor([[-3.0, 0.25, 0.5, 1.0, 7.0, *[0.0] * 5]])
    assert victim.greedy("agent_0", outputs).tolist() == [[0.0, 0.25, 0.5, 1.0, 1.0]]


def test_masks_are_taken_care_of() -> None:
    net = nn.Sequential(nn.Flatten(), network(7, features=84))
    env = connect_four_v3.env()
    victim = Victim.from_policies(net, env)
    env.reset(seed=0)
    obs = env.observe("player_0")
    obs["action_mask"] = 0 * obs["action_mask"]
    obs["action_mask"][4] = 1
    assert victim.act({"player_0": obs}) == {"player_0": 4}


@pytest.mark.parametrize("legal", [spaces.Box(0, 1, (5,), np.int8), spaces.MultiBinary(5)])
def test_masks_of_another_name_are_asked_for(legal: spaces.Space[Any]) -> None:
    class Renamed(BaseParallelWrapper[str, Any, Any]):
        def observation_space(self, agent: str) -> spaces.Space[Any]:
            return spaces.Dict(obs=self.env.observation_space(agent), mask=legal)

    with pytest.raises(ValueError, match=r"^expected to know whether 'mask' says .* call it action_mask"):
        Victim.from_policies(nn.Linear(23, 5), Renamed(simple_spread_v3.parallel_env()))


def test_a_memory_is_two_methods() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(18, 6), nn.Linear(6, 5)

        def initial_state(self, rows: int) -> Tensor:
            return torch.zeros(rows, 6)

        def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = self.cell(obs, state)
            return self.head(state), state

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = Victim.from_policies(Memory(), simple_spread_v3.parallel_env())
    result = evaluate(victim, "mpe2.simple_spread_v3", attacks=[("fgsm", 0.5)], episodes=3)
    assert result.attacks[0].objective_gain > 0
    obs = {"agent_0": torch.randn(18, generator=generator()).numpy()}
    memory = victim.memory()
    victim.act(obs, memory=memory)
    assert memory.recall({"agent_0": torch.tensor([0])}).abs().sum() > 0


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"agent_0": network(5, features=18)}, "a policy for each agent, got none for agent_1, agent_2"),
        (dict.fromkeys(("agent_0", "agent_1", "agent_2", "b"), network(5, features=18)), "got one of b"),
        (
            network(4, features=18),
            r"expected module 'policy' to give 5 outputs for Discrete\(5\), got \(4,\)",
        ),
        (network(5, features=17), "expected module 'policy' to take observations"),
    ],
)
def test_refuses(policies: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Victim.from_policies(policies, simple_spread_v3.parallel_env())


class ActorCritic(nn.Module):
    """As Stable-Baselines3's policies: several outputs, and the last distribution is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.pi, self.v = nn.Linear(18, 5), nn.Linear(18, 1)
        self.last: torch.distributions.Distribution | None = None

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        self.last = torch.distributions.Categorical(logits=self.pi(obs))
        return self.last.sample(), self.v(obs)


class Awkward(nn.Module):
    """As TorchRL's multi-agent networks: it wants another shape, and says so in its own way."""

    def forward(self, obs: Tensor) -> Tensor:
        raise KeyError("agents")


def test_policies_of_other_frameworks_are_told_the_way() -> None:
    env, used = simple_spread_v3.parallel_env(), ActorCritic()
    used(torch.zeros(1, 18))
    for policy, why in (
        (ActorCritic(), "give one tensor of distribution inputs, got a tuple from ActorCritic"),
        (used, "a network that can be copied, got a ActorCritic, which keeps tensors of its last forward"),
        (Awkward(), r"take observations \(18,\), got KeyError \('agents'\) from Awkward"),
    ):
        with pytest.raises(ValueError, match=rf"^expected module 'policy' to (be )?{why}.*Victim\.from_sb3"):
            Victim.from_policies(policy, env)
    with pytest.raises(ValueError, match=r"^expected a torch network, or one by agent, got a dict"):
        Victim.from_policies({"agent_0": {}}, env)  # type: ignore[dict-item]
