"""Adversaries choose what agents see, within the set, and lose what the agents earn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from marl_aajr.core.adversary_actions import PAADActions, SARLActions
from marl_aajr.core.distributions import from_space
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.env_checker import check_batched_env, random_actions
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch, resolve
from marl_aajr.rollout.perturbed import Perturb, PerturbedBatch, PerturbedGame, adversary_of

SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"N": 2, "max_cycles": 5})
TAG = resolve("marl_aajr.envs.simple_tag_v3", {"max_cycles": 5})
ENDINGS = {"a": (7, "truncated"), "b": (6, "terminated"), "c": (9, "truncated")}
TURNS = resolve("tests.rollout.toy_games:Circle", {"endings": ENDINGS})
CPU = torch.device("cpu")


def batch(
    spec: EnvironmentSpec = SPREAD, num_envs: int = 3, *, epsilon: float | None = 0.1, **settings: Any
) -> PerturbedBatch:
    env = PerturbedGame(spec, settings.pop("agents", None))(num_envs, CPU)
    env.perturb = (
        None if epsilon is None else Perturb(SARLActions(), PerturbationSet(epsilon=epsilon, **settings))
    )
    return env


def in_full(env: BatchedEnv, share: float) -> dict[str, Tensor]:
    """Everybody's largest action, times a number."""
    actions = random_actions(env, seed=1)
    return {a: torch.full_like(v, share) if v.is_floating_point() else v for a, v in actions.items()}


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SPREAD, {}),
        (SPREAD, {"epsilon": None}),
        (TAG, {"norm": "l2"}),
        (TAG, {"agents": ("agent_0",)}),
        (TURNS, {}),
        (TURNS, {"agents": ("b",)}),
    ],
    ids=["spread", "unperturbed", "l2", "one-agent", "turns", "turns-one-agent"],
)
def test_the_contract_holds(spec: EnvironmentSpec, settings: dict[str, Any]) -> None:
    check_batched_env(lambda num_envs: batch(spec, num_envs, **settings), steps=20)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_agents_see_the_truth_plus_what_their_adversary_chose_within_epsilon(norm: Any) -> None:
    env, alone, within = batch(norm=norm), make_batch(SPREAD, 3), PerturbationSet(epsilon=0.1, norm=norm)
    seen, true = env.reset(seed=1), alone.reset(seed=1)
    for t in range(12):
        chosen = random_actions(env, seed=t)
        for agent, obs in true.items():
            assert torch.equal(seen[adversary_of(agent)], obs)
        shown = env.step(chosen).obs
        for agent, obs in true.items():
            action = chosen[adversary_of(agent)]
            assert torch.equal(shown[agent], obs + within.squash(action, obs))
            size = within.size(shown[agent] - obs)
            assert (size <= 0.1 + 1e-6).all()
            assert (size > 0.05).any()
        step, expected = env.step(chosen), alone.step({agent: chosen[agent] for agent in true})
        seen, true = step.obs, expected.obs
        for agent in true:
            assert torch.equal(step.rewards[agent], expected.rewards[agent])
            assert torch.equal(step.final_obs[agent], expected.final_obs[agent])


def test_each_side_has_its_turn_and_is_shown_nothing_in_the_other() -> None:
    env = batch()
    obs = env.reset(seed=1)
    for turn in range(6):
        adversaries_act = turn % 2 == 0
        for agent in env.possible_agents:
            acts = agent.startswith("adversary_of_") == adversaries_act
            assert env.active[agent].all() == acts
            assert obs[agent].any() == acts
        step = env.step(in_full(env, 1.0))
        paid = any(bool(reward.any()) for reward in step.rewards.values())
        assert paid != adversaries_act
        obs = step.obs


def test_adversaries_lose_what_the_team_earns() -> None:
    env = batch(TAG)
    env.reset(seed=1)
    seen_a_catch = False
    for t in range(60):
        rewards = env.step(random_actions(env, seed=t)).rewards
        teams = dict.fromkeys(env.teams.values(), torch.zeros(3))
        for agent, reward in rewards.items():
            teams[env.teams[agent]] = teams[env.teams[agent]] + reward
        for team in ("good", "adversary"):
            torch.testing.assert_close(teams[adversary_of(team)], -teams[team])
        seen_a_catch |= bool(teams["adversary"].any())
    assert seen_a_catch


@pytest.mark.parametrize("kind", ["scripted", "circle"])
def test_adversaries_are_paid_to_the_last_step_whoever_is_out_before(kind: str) -> None:
    env = batch(resolve(f"tests.rllib.test_stock_rows:{kind}", {"endings": "staggered"}))
    env.reset(seed=1)
    earned = dict.fromkeys(env.possible_agents, torch.zeros(3))
    ended = dict.fromkeys(env.possible_agents, torch.zeros(3, dtype=torch.bool))
    over = torch.zeros(3, dtype=torch.bool)
    early: set[str] = set()
    while not over.all():
        step = env.step(random_actions(env, seed=1))
        for agent in env.possible_agents:
            earned[agent] = earned[agent] + step.rewards[agent] * ~ended[agent]
            ended[agent] = ended[agent] | step.terminations[agent] | step.truncations[agent]
            early |= {agent} if (ended[agent] & ~(over | step.episode_over)).any() else set()
        over = over | step.episode_over
    agents = env.env.possible_agents
    assert early
    assert early < set(agents)
    team, adversaries = (
        torch.stack([earned[name(a)] for a in agents]).sum(0) for name in (str, adversary_of)
    )
    assert team.min() > 0
    torch.testing.assert_close(adversaries, -team)


def test_without_a_set_nothing_is_perturbed() -> None:
    env = batch(epsilon=None)
    true = env.reset(seed=1)
    shown = env.step(in_full(env, 1.0)).obs
    assert torch.equal(shown["agent_0"], true[adversary_of("agent_0")])


def test_observations_that_are_no_floating_point_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected floating-point observations of 'player_1'"):
        batch(resolve("classic/tictactoe-v3"))


@pytest.mark.parametrize("agents", [("nobody",), ()])
def test_unknown_agents_are_refused(agents: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected agents out of agent_0, agent_1; got .?no"):
        batch(agents=agents)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_director_moves_the_policy_to_where_it_points(continuous: bool) -> None:
    """Pointed at each action in turn, a linear policy comes to prefer it as far as ε lets it."""
    spec = resolve(SPREAD.name, {**SPREAD.kwargs, "continuous_actions": continuous})
    env = PerturbedGame(spec, kind="pa-ad")(50, CPU)
    space = env.action_spaces["agent_0"]
    assert env.action_spaces[adversary_of("agent_0")] == (Box(-1, 1, (5,)) if continuous else space)
    distribution = from_space(space)
    network = torch.nn.Linear(12, distribution.num_inputs)
    policy = ModulePolicy(network, distribution)
    within = PerturbationSet(epsilon=0.1)
    env.perturb = Perturb(PAADActions(steps=2, step_size=1.0), within, dict.fromkeys(env.attacked, policy))
    for target in range(5):
        true = env.reset(seed=1)["adversary_of_agent_0"]
        there = torch.eye(5)[target].expand(50, 5) if continuous else torch.full((50,), target)
        shown = env.step({adversary_of(a): there for a in env.attacked}).obs["agent_0"]
        assert (within.size(shown - true) <= 0.1 + 1e-6).all()
        with torch.no_grad():
            before, after = network(true)[:, :5], network(shown)[:, :5]
        lead = [y[:, target] - y[:, [a for a in range(5) if a != target]].amax(1) for y in (before, after)]
        if continuous:
            lead = [before[:, target], after[:, target]]
        assert (lead[1] > lead[0]).all()
