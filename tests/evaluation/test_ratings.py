"""Nash averaging and Elo against games that are solved by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marl_aajr.evaluation.ratings import elo, nash_average
from tests.matrix_game import ROCK_PAPER_SCISSORS

RPS = np.array(ROCK_PAPER_SCISSORS)
ORDERED = np.array([[0, -1, -2], [1, 0, -1], [2, 1, 0]])
"""The third beats the second, which beats the first."""


class TestNashAveraging:
    def test_rock_paper_scissors_are_equal(self) -> None:
        found = nash_average(RPS)
        assert found.rows == pytest.approx([1 / 3] * 3)
        assert found.columns == pytest.approx([1 / 3] * 3)
        assert found.ratings == pytest.approx([0, 0, 0], abs=1e-9)
        assert found.unique

    def test_of_an_order_the_best_is_all(self) -> None:
        found = nash_average(ORDERED)
        assert found.rows == pytest.approx([0, 0, 1])
        assert found.ratings == pytest.approx([-2, -1, 0])
        assert found.difficulties == pytest.approx([-2, -1, 0])
        assert found.unique

    def test_a_dominated_player_has_no_share_and_the_lowest_rating(self) -> None:
        worse = np.block([[RPS, np.full((3, 1), 1)], [np.full((1, 3), -1), np.zeros((1, 1))]])
        found = nash_average(worse)
        assert found.rows == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-6)
        assert found.ratings == pytest.approx([0, 0, 0, -1], abs=1e-6)

    def test_copies_share_what_one_would_have_and_it_says_that_entropy_chose(self) -> None:
        """Two rocks: any split of the third is an equilibrium, the even one has the most entropy."""
        places = [0, 0, 1, 2]
        found = nash_average(RPS[np.ix_(places, places)])
        assert not found.unique
        assert found.rows == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=1e-3)
        assert found.ratings == pytest.approx([0] * 4, abs=1e-3)

    def test_copies_of_an_opponent_change_no_rating_as_they_change_a_mean(self) -> None:
        tasks = np.array([[3.0, 0.0], [1.0, 2.0]])
        copied = tasks[:, [0, 0, 0, 1]]
        assert (tasks.mean(1).tolist(), copied.mean(1).tolist()) == ([1.5, 1.5], [2.25, 1.25])
        assert nash_average(copied).ratings == pytest.approx([1.5, 1.5], abs=1e-3)

    def test_a_mixed_game_of_two_by_two(self) -> None:
        """[[3, 0], [1, 2]]: p = (1/4, 3/4), q = (1/2, 1/2), value 3/2."""
        found = nash_average([[3, 0], [1, 2]])
        assert found.rows == pytest.approx([1 / 4, 3 / 4])
        assert found.columns == pytest.approx([1 / 2, 1 / 2])
        assert found.value == pytest.approx(1.5)
        assert found.ratings == pytest.approx([1.5, 1.5])
        assert found.unique

    def test_where_nothing_differs_all_share_alike(self) -> None:
        found = nash_average(np.full((3, 2), 7.0))
        assert found.rows == pytest.approx([1 / 3] * 3, abs=1e-6)
        assert found.value == pytest.approx(7)
        assert not found.unique

    def test_nobody_gains_by_another_choice(self) -> None:
        """Of small whole numbers, where ties are common."""
        rng = np.random.default_rng(0)
        for _ in range(12):
            table = rng.integers(-3, 4, rng.integers(1, 5, size=2)).astype(float)
            found, moved = nash_average(table), nash_average(2 * table + 5)
            assert found.rows.sum() == pytest.approx(1)
            assert (table @ found.columns).max() <= found.value + 1e-4
            assert (found.rows @ table).min() >= found.value - 1e-4
            assert moved.ratings == pytest.approx(2 * found.ratings + 5, abs=1e-3)

    @pytest.mark.parametrize("table", [[], [[]], [1.0, 2.0], [[np.nan]]])
    def test_no_table(self, table: Any) -> None:
        with pytest.raises(ValueError, match="a table of finite numbers"):
            nash_average(table)


class TestElo:
    def test_ten_to_one_are_400_points(self) -> None:
        first, second = elo([[0, 10], [1, 0]], draws=0)
        assert first - second == pytest.approx(400, abs=1e-3)
        assert first + second == pytest.approx(3000)

    def test_it_finds_the_ratings_that_made_the_games(self) -> None:
        true = np.array([1500.0, 1700.0, 1300.0])
        wins = 1 / (1 + 10 ** ((true[None] - true[:, None]) / 400))
        np.fill_diagonal(wins, 0)
        assert elo(wins, draws=0) == pytest.approx(true, abs=1e-2)

    def test_cycles_are_equal_and_who_never_lost_has_a_rating(self) -> None:
        assert elo((RPS > 0) * 5) == pytest.approx([1500] * 3)
        best, worst = elo([[0, 9], [0, 0]])
        assert 1500 < best < 2500
        assert worst < 1500

    @pytest.mark.parametrize("wins", [[[0, 1, 2]], [[0, -1], [1, 0]]])
    def test_no_games(self, wins: Any) -> None:
        with pytest.raises(ValueError, match="expected wins ≥ 0 as a square table"):
            elo(wins)
