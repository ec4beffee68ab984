"""The congestion game as an environment: its rules, and what a lie to a few costs everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from marl_aajr.envs.congestion_v0 import (
    CongestionBatch,
    batched_env,
    costs,
    equilibrium,
    optimum,
    parallel_env,
    social_cost,
)
from torch import Tensor

from marl_aajr.rollout.batched_env import BatchedStep

pytestmark = pytest.mark.slow

Game = dict[str, Any]


# --- the rules ---------------------------------------------------------------------------------------


def act(env: CongestionBatch, choice: Tensor) -> BatchedStep:
    return env.step(dict(zip(env.possible_agents, choice, strict=True)))


def test_a_round_by_hand() -> None:
    env = batched_env(1, num_agents=4, num_resources=2, noise=0.0, local_ratio=0.25, power=2.0)
    env.reset(seed=0)
    a0, a1 = env.background[:, 0].tolist()
    step = act(env, torch.tensor([[0], [0], [0], [1]]))
    crowded, quiet = (a0 + 0.75) ** 2, (a1 + 0.25) ** 2
    mean = 0.75 * crowded + 0.25 * quiet
    assert float(step.rewards["agent_0"]) == pytest.approx(-0.25 * crowded - 0.75 * mean)
    assert float(step.rewards["agent_3"]) == pytest.approx(-0.25 * quiet - 0.75 * mean)
    assert float(social_cost(env.share, background=env.background, power=env.game.power)) == pytest.approx(
        mean
    )
    assert step.obs["agent_3"][0].tolist() == pytest.approx([a0 + 0.75, a1 + 0.25, 0.0, 1.0])


def test_adversaries_gain_what_the_others_pay() -> None:
    env = batched_env(7, num_agents=3, num_adversaries=2, local_ratio=0.0)
    adversaries, good = [f"adversary_{i}" for i in range(2)], [f"agent_{i}" for i in range(3)]
    assert env.teams == {**dict.fromkeys(adversaries, "adversary"), **dict.fromkeys(good, "good")}
    env.reset(seed=0)
    choice = torch.randint(3, (5, 7), generator=torch.Generator().manual_seed(0))
    rewards = act(env, choice).rewards
    paid = costs(env.share, background=env.background, power=1.0).gather(0, choice)
    for name in good:
        torch.testing.assert_close(rewards[name], -paid[2:].mean(0))
    for name in adversaries:
        torch.testing.assert_close(rewards[name], paid[2:].mean(0))


def test_reports_are_honest_up_to_their_noise() -> None:
    env = batched_env(400, num_agents=6, noise=0.2)
    first = env.reset(seed=0)
    loads = env.background + env.share
    errors = torch.stack([first[agent][:, :3].T - loads for agent in env.possible_agents])
    assert 0.19 < float(errors.abs().max()) <= 0.2 + 1e-6
    assert abs(float(errors.mean())) < 0.01
    assert float(errors.var()) == pytest.approx(0.2**2 / 3, rel=0.05)
    # Another error for each agent, resource and round.
    obs = act(env, torch.zeros(6, 400, dtype=torch.int64)).obs
    loads = env.background + env.share
    later = torch.stack([obs[agent][:, :3].T - loads for agent in env.possible_agents])
    rows = torch.cat([errors, later]).flatten(0, 1).numpy()
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlations).max() < 5 / np.sqrt(400)


def test_episodes_begin_with_random_loads_and_places() -> None:
    env = batched_env(3000, num_agents=10, num_resources=4, background=0.7)
    env.reset(seed=0)
    assert float(env.background.min()) == pytest.approx(0.0, abs=1e-3)
    assert float(env.background.max()) == pytest.approx(0.7, abs=1e-3)
    counts = env.choice.flatten().bincount().double() / 30_000
    torch.testing.assert_close(counts, torch.full((4,), 0.25, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_resources": 1}, "an integer num_resources ≥ 2, got 1"),
        ({"num_agents": 0}, "num_agents"),
        ({"num_adversaries": -1}, "num_adversaries"),
        ({"power": 0.0}, "power > 0"),
        ({"noise": -0.1}, "noise ≥ 0"),
        ({"background": -1}, "background ≥ 0"),
        ({"local_ratio": 2}, "local_ratio"),
    ],
)
def test_bad_options_are_named(options: Game, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parallel_env(**options)


# --- lies --------------------------------------------------------------------------------------------

Lie = Callable[[int], float]
"""From the round to what is added to the load of resource 0 in the reports of those who are lied to."""


@dataclass(frozen=True)
class Outcome:
    """What happened in the rounds that were played.

    Attributes:
        shares: `[rounds, M, E]`.
        choices: `[rounds, N, E]`.
        cost: Mean social cost.
    """

    shares: Tensor
    choices: Tensor
    cost: float


def logit(reports: Tensor, *, power: float, sharpness: float) -> Tensor:
    """The mixed choice softmax(−β r^p) `[M, ...]` of an agent that believes the reported loads.

    Args:
        reports: r, `[M, ...]`; noise may make them negative, which counts as 0.
        power: p.
        sharpness: β.
    """
    return (-sharpness * reports.clamp_min(0) ** power).softmax(0)


def answer(
    env: CongestionBatch, *, sharpness: float, lie: Lie, told: int, rounds: int, patience: float = 0.0
) -> Outcome:
    """Everybody answers the reports with `logit`; the first `told` agents are lied to.

    With `patience` as probability an agent stays where it is. Luck is the same in every call.
    """
    obs, resources = env.reset(seed=1), env.game.num_resources
    generator = torch.Generator().manual_seed(2)
    shares, choices, paid = [], [], []
    for t in range(rounds):
        reports = torch.stack([obs[agent][:, :resources].T for agent in env.possible_agents], 1)
        reports[0, :told] += lie(t)
        belief = logit(reports, power=env.game.power, sharpness=sharpness)
        luck, stays = torch.rand(2, *belief.shape[1:], generator=generator, dtype=belief.dtype)
        choice = (belief.cumsum(0) < luck).sum(0).clamp_max(resources - 1)
        obs = act(env, torch.where(stays < patience, env.choice, choice)).obs
        shares.append(env.share.clone())
        choices.append(env.choice.clone())
        paid.append(social_cost(env.share, background=env.background, power=env.game.power))
    return Outcome(torch.stack(shares), torch.stack(choices), float(torch.stack(paid).mean()))


def honest(t: int) -> float:
    return 0.0


def steady(size: float) -> Lie:
    return lambda t: size


def swinging(size: float) -> Lie:
    return lambda t: size * (-1) ** t


def make(agents: int, copies: int, **options: Any) -> CongestionBatch:
    return batched_env(copies, num_agents=agents, max_cycles=100, dtype=torch.float64, **options)


def test_reports_are_worth_hearing() -> None:
    """Patient answers to the reports find room; who does not listen pays for it."""
    env = make(20, 200)
    deaf = answer(env, sharpness=0.0, lie=honest, told=0, rounds=60).cost
    heard = answer(env, sharpness=20.0, patience=0.8, lie=honest, told=0, rounds=60).cost
    least = float(
        social_cost(
            optimum(background=env.background, power=1.0), background=env.background, power=1.0
        ).mean()
    )
    selfish = float(
        social_cost(equilibrium(background=env.background), background=env.background, power=1.0).mean()
    )
    print(f"optimum {least:.3f}, equilibrium {selfish:.3f}, heard {heard:.3f}, deaf {deaf:.3f}")
    assert least < heard < deaf
    assert heard - least < (deaf - least) / 2
    assert least < selfish < deaf


def test_everybody_at_once_is_a_herd() -> None:
    """Sharp answers without patience: all flee from load to load, and pay more than if they were deaf."""
    env = make(20, 200, background=0.0)
    deaf = answer(env, sharpness=0.0, lie=honest, told=0, rounds=20).cost
    herd = answer(env, sharpness=30.0, lie=honest, told=0, rounds=20)
    assert herd.cost > 1.8 * deaf
    assert float(herd.shares.amax(1)[5:].mean()) > 0.75


GAIN, AGENTS, TOLD, SIZE = 0.7, 400, 80, 0.2


def displacement(lie: Lie, rounds: int) -> Tensor:
    """How far the share of resource 0 is from where it would be without the lie `[rounds]`.

    Without background loads π = 1/3 and J = −(β/3)(I − 11ᵀ/3), so β = 3 · gain.
    """
    env = make(AGENTS, 60, background=0.0, noise=0.01)
    play = [
        answer(env, sharpness=3 * GAIN, lie=told_what, told=TOLD, rounds=rounds)
        for told_what in (lie, honest)
    ]
    return (play[0].shares - play[1].shares)[:, 0].mean(1)


def predicted(lie: Lie, rounds: int) -> list[float]:
    """d_t = −g d_{t−1} − (k/N) g (2/3) δ_t, resource 0's part of the recursion."""
    moved, d = [], 0.0
    for t in range(rounds):
        d = -GAIN * d - TOLD / AGENTS * GAIN * (2 / 3) * lie(t)
        moved.append(d)
    return moved


@pytest.mark.parametrize(
    "lie", [lambda t: SIZE * (t == 0), steady(SIZE), swinging(SIZE)], ids=["once", "steady", "swinging"]
)
def test_a_lie_moves_the_shares_as_the_gain_says(lie: Lie) -> None:
    moved = displacement(lie, 14)
    np.testing.assert_allclose(moved, predicted(lie, 14), atol=0.12 * float(moved.abs().max()))


def test_a_swinging_lie_is_fed_and_a_steady_one_is_answered() -> None:
    first = TOLD / AGENTS * GAIN * (2 / 3) * SIZE
    steady_end = displacement(steady(SIZE), 24)[-6:].abs().mean()
    swinging_end = displacement(swinging(SIZE), 24)[-6:].abs().mean()
    assert float(steady_end) == pytest.approx(first / (1 + GAIN), rel=0.25)
    assert float(swinging_end) == pytest.approx(first / (1 - GAIN), rel=0.15)


@dataclass(frozen=True)
class Price:
    """What a lie does to 20 agents.

    Attributes:
        percent: What it adds to the social cost.
        told: How many of those who were lied to choose otherwise, on average.
        truthful: How many of the others do.
    """

    percent: float
    told: float
    truthful: float


def price(lie: Lie, told: int, *, gain: float = 0.8) -> Price:
    env = make(20, 200)
    fair = answer(env, sharpness=3 * gain, lie=honest, told=told, rounds=25)
    lied = answer(env, sharpness=3 * gain, lie=lie, told=told, rounds=25)
    moved = (lied.choices != fair.choices).double()
    counts = [float(part.sum(1).mean()) for part in (moved[:, :told], moved[:, told:])]
    return Price(100 * (lied.cost / fair.cost - 1), *counts)


def test_the_price_of_a_lie_grows_with_its_size_and_its_reach() -> None:
    by_size = [price(swinging(size), 5).percent for size in (0.0, 0.25, 0.5, 1.0)]
    by_reach = [price(swinging(0.5), told).percent for told in (0, 2, 5, 10)]
    print("price in percent by size", by_size, "and by reach", by_reach)
    assert by_size[0] == by_reach[0] == 0.0
    assert by_size == sorted(by_size)
    assert by_reach == sorted(by_reach)
    assert by_size[-1] > 4


def test_a_lie_to_a_few_herds_the_many() -> None:
    """Five of twenty are lied to; the fifteen who hear the truth do the damage, if the lie keeps time."""
    in_time, steadily = price(swinging(0.5), 5), price(steady(0.5), 5)
    print(f"in time {in_time}, steadily {steadily}")
    assert in_time.percent > 2.5
    assert abs(steadily.percent) < in_time.percent / 5
    assert in_time.truthful > in_time.told
    assert in_time.truthful > 1.5 * steadily.truthful


def test_a_policy_of_lower_gain_pays_less_for_the_same_lie() -> None:
    prices = [price(swinging(0.5), 5, gain=gain).percent for gain in (0.2, 0.5, 0.8)]
    print("price in percent by gain", prices)
    assert prices == sorted(prices)
    assert prices[0] < prices[-1] / 3
