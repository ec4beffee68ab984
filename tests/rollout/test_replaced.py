"""Adversaries act in the place of agents, with probability α, and lose what these earn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.core.adversary_actions import ReplacingActions
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.perturbed import Perturb, adversary_of
from marl_aajr.rollout.replaced import ReplacedBatch, ReplacedGame
from tests.rollout.test_perturbed import CPU, SPREAD, TAG, TURNS

BOXES = resolve("marl_aajr.envs.simple_spread_v3", {"N": 2, "max_cycles": 5, "continuous_actions": True})


def batch(
    spec: EnvironmentSpec = SPREAD, num_envs: int = 3, *, alpha: float = 0.5, agents: Any = None
) -> ReplacedBatch:
    env = ReplacedGame(spec, agents)(num_envs, CPU)
    env.perturb = Perturb(ReplacingActions(), PerturbationSet(epsilon=alpha)) if alpha else None
    return env


@pytest.mark.parametrize(
    ("spec", "settings"),
    [(SPREAD, {}), (SPREAD, {"alpha": 0}), (BOXES, {}), (TAG, {"agents": ("agent_0",)}), (TURNS, {})],
    ids=["spread", "nobody", "boxes", "one-agent", "turns"],
)
def test_the_contract_holds(spec: EnvironmentSpec, settings: dict[str, Any]) -> None:
    check_batched_env(lambda num_envs: batch(spec, num_envs, **settings), steps=20)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("spec", [SPREAD, BOXES], ids=["discrete", "boxes"])
def test_what_is_done_is_the_agents_or_the_adversarys_action(spec: EnvironmentSpec, alpha: float) -> None:
    env, alone = batch(spec, alpha=alpha), make_batch(spec, 3)
    seen, true = env.reset(seed=1), alone.reset(seed=1)
    for t in range(12):
        chosen = random_actions(env, seed=t)
        assert all(torch.equal(seen[adversary_of(agent)], obs) for agent, obs in true.items())
        shown = env.step(chosen).obs
        assert all(torch.equal(shown[agent], obs) for agent, obs in true.items())
        done = {agent: chosen[adversary_of(agent) if alpha else agent] for agent in true}
        step, expected = env.step(chosen), alone.step(done)
        seen, true = step.obs, expected.obs
        paid = sum(expected.rewards.values())
        for agent in true:
            assert torch.equal(step.rewards[agent], expected.rewards[agent])
            torch.testing.assert_close(step.rewards[adversary_of(agent)], -paid / 2)


def test_agents_are_replaced_by_chance_each_by_itself() -> None:
    """Agents stand still and adversaries push: who has moved was replaced."""
    env = batch(num_envs=400, alpha=0.3)
    env.reset(seed=0)
    names = {agent: adversary_of(agent) for agent in env.attacked}
    still = {agent: torch.zeros(400, dtype=torch.int64) for agent in names}
    env.step({name: torch.ones(400, dtype=torch.int64) for name in names.values()})
    obs = env.step(still).obs
    one, other = (obs[name][:, 2:4] for name in names.values())
    apart = torch.linalg.vector_norm(one - other, dim=-1) > 0.5  # nobody was pushed by the other
    moved = torch.stack([obs[name][apart, 0] < -0.3 for name in names.values()]).float()
    torch.testing.assert_close(moved.mean(1), torch.full((2,), 0.3), rtol=0, atol=0.08)
    assert moved.prod(0).mean().item() == pytest.approx(0.09, abs=0.05)
