"""When to strike: by the past alone, each choice as likely as it should be, and counted by somebody else."""

from __future__ import annotations

from collections import Counter
from math import comb, log
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from marl_aajr.attacks import BudgetError
from marl_aajr.core.distributions import Categorical, MultiCategorical
from marl_aajr.evaluation.timing import Clock, Ledger, Pace, Rehearsal, preference
from marl_aajr.evaluation.view import View
from marl_aajr.victims import VictimPolicy
from tests.networks import generator


def pace(m: int, length: int, timing: Any = "random", preferences: Tensor | None = None) -> Pace:
    seen = torch.zeros(0) if preferences is None else preferences.sort().values
    return Pace(m, timing, length, length, length, seen)


def run(clock: Clock, due: Tensor, preferences: Tensor) -> Tensor:
    """Strikes `[T, E]` of one episode in each copy."""
    return torch.stack([clock.strike(d, c) for d, c in zip(due, preferences, strict=True)])


class TestRandom:
    def test_every_choice_of_m_steps_is_equally_likely(self) -> None:
        episodes, m, length = 6000, 2, 4
        clock = Clock(pace(m, length), num_envs=episodes, generator=generator())
        struck = run(clock, torch.ones(length, episodes).bool(), torch.zeros(length, episodes))
        counts = Counter(tuple(column.nonzero().flatten().tolist()) for column in struck.T)
        assert len(counts) == comb(length, m)
        assert all(len(chosen) == m for chosen in counts)
        assert stats.chisquare(list(counts.values())).pvalue > 0.01

    def test_numbers_are_drawn_whether_or_not_somebody_must_act(self) -> None:
        """So an attack that changes who acts when changes no other copy's times."""
        due = torch.ones(6, 3).bool()
        other = due.clone()
        other[2:4, 0] = False
        first, second = (
            run(Clock(pace(2, 6), num_envs=3, generator=generator()), rows, torch.zeros(6, 3))
            for rows in (due, other)
        )
        assert torch.equal(first[:, 1:], second[:, 1:])


class TestStrategic:
    def test_the_rarest_preferences_are_struck(self) -> None:
        """Ten steps of preferences 0.1 … 1.0: of three strikes each is one of the three largest."""
        seen = torch.arange(1, 11).double() / 10
        order = torch.stack([seen[torch.randperm(10, generator=generator(i))] for i in range(50)], 1)
        clock = Clock(pace(3, 10, "strategic", seen.repeat(50)), num_envs=50, generator=generator())
        struck = run(clock, torch.ones(10, 50).bool(), order)
        assert torch.equal(struck, order > 0.75)

    def test_of_equal_steps_each_is_struck(self) -> None:
        """A policy that is equally sure everywhere: ties are broken at random, not by time."""
        clock = Clock(pace(1, 5, "strategic", torch.full((100,), 0.5)), num_envs=500, generator=generator())
        struck = run(clock, torch.ones(5, 500).bool(), torch.full((5, 500), 0.5))
        assert struck.sum(0).eq(1).all()
        assert (struck.sum(1) > 25).all()

    def test_what_is_left_at_the_end_is_used(self) -> None:
        """Nothing is as large as what was seen, and still all strikes are made, in the last steps."""
        clock = Clock(pace(2, 6, "strategic", torch.ones(30)), num_envs=4, generator=generator())
        struck = run(clock, torch.ones(6, 4).bool(), torch.zeros(6, 4))
        assert struck.sum(0).eq(2).all()
        assert struck[-2:].all()


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
    clock = Clock(pace(m, length, timing, seen), num_envs=3, generator=chance)
    ledger = Ledger(m, num_envs=3)
    for _ in range(2):
        for _ in range(steps):
            due = torch.rand(3, generator=chance) < 0.8
            struck = clock.strike(due, torch.rand(3, generator=chance, dtype=torch.float64))
            assert not (struck & ~due).any()
            ledger.enter(struck)
        over = torch.tensor([True, False, True])
        clock.restart(over)
        ledger.restart(over)


def test_the_ledger_counts_each_episode_and_refuses_one_strike_too_many() -> None:
    ledger = Ledger(2, num_envs=2)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    ledger.enter(both)
    ledger.enter(both)
    ledger.restart(first)
    ledger.enter(first)
    assert ledger.total == 5
    with pytest.raises(BudgetError, match="expected at most 2 attacked steps an episode, got 3"):
        ledger.enter(both)


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


def test_a_rehearsal_by_hand() -> None:
    """Two copies: one plays episodes of 3 steps and of 1, the other one an episode that does not count."""
    policy = VictimPolicy(torch.nn.Identity(), Categorical(2), shape=(2,))
    sure, unsure = [log(3), 0.0], [0.0, 0.0]

    def view(agent: str, copies: list[int], logits: list[list[float]]) -> View:
        return View({agent: torch.tensor(copies)}, torch.tensor(logits), policy)

    rehearsal = Rehearsal(["a", "b"], strategic=True)
    rehearsal([view("a", [0, 1], [sure, sure]), view("b", [0], [unsure])], torch.tensor([0, -1]))
    rehearsal([view("a", [0, 1], [unsure, sure])], torch.tensor([0, -1]))
    rehearsal([view("b", [0], [sure])], torch.tensor([0, -1]))
    rehearsal([view("a", [0], [sure]), view("c", [0], [sure])], torch.tensor([2, -1]))
    both = rehearsal.pace(["a", "b"], steps=1)
    assert (both.shortest, both.longest, str(both)) == (1, 3, "1 of 1–3 steps, strategic")
    torch.testing.assert_close(both.preferences, torch.tensor([0.0, 0.25, 0.5, 0.5], dtype=torch.float64))
    alone = rehearsal.pace(["a"], steps=1)
    assert (alone.shortest, alone.longest) == (1, 2)
    torch.testing.assert_close(alone.preferences, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="at most 2 steps in the budget"):
        rehearsal.pace(["a"], steps=3)
