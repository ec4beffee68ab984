"""How many steps of an episode are attacked, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marl_aajr.attacks import BudgetError
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.evaluation.attack_schedule import StepSelector
from tests.evaluation.players import flip, moves, played, sign_reader, signs, team


class TestSteps:
    """Where every attacked decision is turned, a return counts the attacked steps: 2 for each."""

    def attacked_steps(self, result: Evaluation) -> list[float]:
        clean, attacked = result.clean.returns, result.attacks[0].returns
        return [(a - b) / 2 for a, b in zip(clean, attacked, strict=True)]

    @pytest.mark.parametrize("timing", ["random", "strategic"])
    @pytest.mark.parametrize("m", [1, 3, 6])
    def test_exactly_m_of_t_where_t_is_fixed(self, timing: str, m: int) -> None:
        result = played((1.0,), steps=6, budget=f"steps={m},timing={timing}")
        assert self.attacked_steps(result) == [m] * 10
        (row,) = result.attacks
        assert row.attacked_steps is not None
        assert (row.attacked_steps.mean, str(row.attacked_steps)) == (m, f"{m} of 6 steps, {timing}")

    @pytest.mark.parametrize("timing", ["random", "strategic"])
    def test_never_more_than_m_where_lengths_differ(self, timing: str) -> None:
        """Signs plays 1 to 6 steps; what the budget does not allow is not done, what it allows is used."""
        spec = signs()
        result = evaluate(
            team(spec, sign_reader()),
            spec,
            attacks=[("fgsm", 1.1)],
            agents=["agent_0"],
            budget=f"steps=2,timing={timing}",
            episodes=40,
            selection_episodes=40,
            num_envs=7,
        )
        counted = self.attacked_steps(result)
        assert set(counted) == {0, 1, 2} or set(counted) == {1, 2}
        steps = result.attacks[0].attacked_steps
        assert steps is not None
        assert steps.mean == pytest.approx(np.mean(counted))
        assert str(steps) == f"2 of 1–6 steps, {timing}"

    def test_a_step_counts_once_for_all_agents_and_is_common_to_them(self) -> None:
        result = played((1.0, 10.0), steps=5, budget="steps=2")
        assert {a - b for a, b in zip(result.clean.returns, result.attacks[0].returns, strict=True)} == {
            2 * 2 * 11.0
        }

    def test_random_times_are_those_of_every_other_attack_and_follow_the_seed(self) -> None:
        attacks = [(flip(name), 1.1) for name in ("fgsm", "pgd-margin", "square")]
        result = played((1.0,), steps=8, crucial=True, budget="steps=3", attacks=attacks, episodes=30)
        returns = {row.returns for row in result.attacks}
        assert len(returns) == 1, "the same steps were attacked"
        assert set(next(iter(returns))) == {-1.0, 1.0}, "and not all of them"
        again = played((1.0,), steps=8, crucial=True, budget="steps=3", episodes=30)
        assert again.attacks[0].returns in returns
        other = played((1.0,), steps=8, crucial=True, budget="steps=3", episodes=30, seed=1)
        assert other.attacks[0].returns not in returns

    def test_strategic_times_beat_random_ones_where_one_step_matters(self) -> None:
        """It is found in every episode; by chance in one of eight."""
        found = {
            timing: played(
                (1.0,), steps=8, crucial=True, budget=f"steps=1,timing={timing}", episodes=80, num_envs=20
            )
            .attacks[0]
            .mean
            for timing in ("random", "strategic")
        }
        assert found["strategic"] == -1.0
        assert found["random"] == pytest.approx(1 - 2 / 8, abs=0.2)

    def test_waiting_for_a_turn_costs_nothing(self) -> None:
        """In Moves the attacked player is to move at every other step."""
        spec = moves()
        protocol: dict[str, Any] = {"budget": "steps=1", "episodes": 20, "selection_episodes": 50}
        result = evaluate(team(spec), spec, attacks=[("pgd-margin", 5.0)], num_envs=6, **protocol)
        steps = result.attacks[0].attacked_steps
        assert steps is not None
        assert 0.5 < steps.mean <= 1
        assert str(steps) == "1 of 1–5 steps, random"

    def test_the_judge_does_not_believe_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StepSelector, "select", lambda self, acting, preference: acting)
        with pytest.raises(BudgetError, match="expected at most 2 attacked steps an episode, got 3"):
            played(budget="steps=2")
