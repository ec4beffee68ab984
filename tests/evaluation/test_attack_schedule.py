"""The attacked steps: chosen by the past alone, each choice as likely as it should be, and counted."""

from __future__ import annotations

from collections import Counter
from math import comb, log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from marl_aajr.attacks import BudgetError
from marl_aajr.core.distributions import Categorical, MultiCategorical
from marl_aajr.evaluation.attack_schedule import (
    AttackSchedule,
    BudgetCounter,
    ScheduleCalibration,
    StepSelector,
    preference,
)
from marl_aajr.victims import VictimPolicy
from marl_aajr.victims.stepper import DecisionBatch
from tests.networks import generator


def selecting(
    m: int,
    length: int,
    timing: Any = "random",
    seen: Tensor | None = None,
    *,
    num_envs: int,
    chance: Any = None,
) -> StepSelector:
    seen = torch.zeros(0) if seen is None else seen.sort().values
    schedule = AttackSchedule(m, timing, length, length, length, seen)
    return StepSelector(schedule, num_envs=num_envs, generator=chance or generator())


def run(selector: StepSelector, acting: Tensor, preferences: Tensor) -> Tensor:
    """Attacked steps `[T, E]` of one episode in each copy."""
    return torch.stack([selector.select(a, c) for a, c in zip(acting, preferences, strict=True)])


class TestRandom:
    def test_every_choice_of_m_steps_is_equally_likely(self) -> None:
        episodes, m, length = 6000, 2, 4
        selector = selecting(m, length, num_envs=episodes)
        attacked = run(selector, torch.ones(length, episodes).bool(), torch.zeros(length, episodes))
        counts = Counter(tuple(column.nonzero().flatten().tolist()) for column in attacked.T)
        assert len(counts) == comb(length, m)
        assert all(len(chosen) == m for chosen in counts)
        assert stats.chisquare(list(counts.values())).pvalue > 0.01

    def test_numbers_are_drawn_whether_or_not_somebody_must_act(self) -> None:
        """So an attack that changes who acts when changes no other copy's times."""
        acting = torch.ones(6, 3).bool()
        other = acting.clone()
        other[2:4, 0] = False
        first, second = (
            run(selecting(2, 6, num_envs=3), rows, torch.zeros(6, 3)) for rows in (acting, other)
        )
        assert torch.equal(first[:, 1:], second[:, 1:])


class TestStrategic:
    def test_the_rarest_preferences_are_attacked(self) -> None:
        """Ten steps of preferences 0.1 … 1.0: of three attacked steps each is one of the three largest."""
        seen = torch.arange(1, 11).double() / 10
        order = torch.stack([seen[torch.randperm(10, generator=generator(i))] for i in range(50)], 1)
        selector = selecting(3, 10, "strategic", seen.repeat(50), num_envs=50)
        attacked = run(selector, torch.ones(10, 50).bool(), order)
        assert torch.equal(attacked, order > 0.75)

    def test_of_equal_steps_each_is_attacked(self) -> None:
        """A policy that is equally sure everywhere: ties are broken at random, not by time."""
        selector = selecting(1, 5, "strategic", torch.full((100,), 0.5), num_envs=500)
        attacked = run(selector, torch.ones(5, 500).bool(), torch.full((5, 500), 0.5))
        assert attacked.sum(0).eq(1).all()
        assert (attacked.sum(1) > 25).all()

    def test_what_is_left_at_the_end_is_used(self) -> None:
        """Nothing is as large as what was seen, and still all steps are spent, in the last steps."""
        selector = selecting(2, 6, "strategic", torch.ones(30), num_envs=4)
        attacked = run(selector, torch.ones(6, 4).bool(), torch.zeros(6, 4))
        assert attacked.sum(0).eq(2).all()
        assert attacked[-2:].all()


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 5),
    length=st.integers(1, 12),
    steps=st.integers(1, 20),
    timing=st.sampled_from(["random", "strategic"]),
    seed=st.integers(0, 99),
)
def test_never_more_than_m_an_episode_whatever_its_length(
    m: int, length: int, steps: int, timing: Any, seed: int
) -> None:
    chance = generator(seed)
    seen = torch.rand(20, generator=chance, dtype=torch.float64)
    selector = selecting(m, length, timing, seen, num_envs=3, chance=chance)
    counter = BudgetCounter(m, num_envs=3)
    for _ in range(2):
        for _ in range(steps):
            acting = torch.rand(3, generator=chance) < 0.8
            attacked = selector.select(acting, torch.rand(3, generator=chance, dtype=torch.float64))
            assert not (attacked & ~acting).any()
            counter.add(attacked)
        over = torch.tensor([True, False, True])
        selector.restart(over)
        counter.restart(over)


def test_the_counter_counts_each_episode_and_refuses_one_step_too_many() -> None:
    counter = BudgetCounter(2, num_envs=2)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    counter.add(both)
    counter.add(both)
    counter.restart(first)
    counter.add(first)
    assert counter.total == 5
    with pytest.raises(BudgetError, match="expected at most 2 attacked steps an episode, got 3"):
        counter.add(both)


class TestPreference:
    def test_by_hand(self) -> None:
        """π = (1/2, 1/3, 1/6), and without the last action (3/5, 2/5)."""
        logits = torch.tensor([[log(3), log(2), 0.0]])
        assert preference(Categorical(3), logits, None).item() == pytest.approx(1 / 2 - 1 / 6)
        legal = torch.tensor([[True, True, False]])
        masked = logits.masked_fill(~legal, torch.finfo().min)
        assert preference(Categorical(3), masked, legal).item() == pytest.approx(3 / 5 - 2 / 5)
        only = torch.tensor([[False, True, False]])
        assert preference(Categorical(3), logits.masked_fill(~only, torch.finfo().min), only).item() == 0

    def test_of_several_actions_the_mean(self) -> None:
        logits = torch.tensor([[log(3), 0.0, log(2), log(2), 0.0]])
        found = preference(MultiCategorical((2, 3)), logits, None).item()
        assert found == pytest.approx(((3 / 4 - 1 / 4) + (2 / 5 - 1 / 5)) / 2)


def test_a_calibration_by_hand() -> None:
    """Two copies: one plays episodes of 3 steps and of 1, the other one an episode that does not count."""
    policy = VictimPolicy(torch.nn.Identity(), Categorical(2), shape=(2,))
    sure, unsure = [log(3), 0.0], [0.0, 0.0]

    def batch(agent: str, copies: list[int], logits: list[list[float]]) -> DecisionBatch:
        return DecisionBatch({agent: torch.tensor(copies)}, policy, torch.tensor(logits))

    calibration = ScheduleCalibration(["a", "b"], strategic=True)
    calibration([batch("a", [0, 1], [sure, sure]), batch("b", [0], [unsure])], torch.tensor([0, -1]))
    calibration([batch("a", [0, 1], [unsure, sure])], torch.tensor([0, -1]))
    calibration([batch("b", [0], [sure])], torch.tensor([0, -1]))
    calibration([batch("a", [0], [sure]), batch("c", [0], [sure])], torch.tensor([2, -1]))
    both = calibration.schedule(["a", "b"], steps=1)
    assert (both.shortest, both.length, both.longest) == (1, 3, 3)
    torch.testing.assert_close(both.preferences, torch.tensor([0.0, 0.25, 0.5, 0.5], dtype=torch.float64))
    alone = calibration.schedule(["a"], steps=1)
    assert (alone.shortest, alone.longest) == (1, 2)
    torch.testing.assert_close(alone.preferences, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="at most 2 steps in the budget"):
        calibration.schedule(["a"], steps=3)
