"""Statistics over runs: numbers worked out by hand, from the definitions of Agarwal 2021."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from marl_aajr.report.comparison import area_under_curve
from marl_aajr.report.pareto import hypervolume, pareto_front
from marl_aajr.report.scores import (
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)


class TestPointEstimates:
    def test_interquartile_mean_drops_a_quarter_at_each_end(self) -> None:
        """Of eight scores the two lowest and the two highest go: (3 + 4 + 5 + 6) / 4."""
        assert interquartile_mean([[1, 2, 3, 4], [5, 6, 7, 100]]) == 4.5
        assert interquartile_mean([[0.0, 1.0, 5.0]]) == 2.0, "of three scores none goes, as in rliable"
        assert interquartile_mean([[-1e9, 1.0, 2.0, 1e9]]) == 1.5

    def test_optimality_gap_counts_only_what_is_missing(self) -> None:
        """(1 − 0.5) + (1 − 1) + 0 + (1 + 1), over four."""
        assert optimality_gap([[0.5, 1.0], [7.0, -1.0]], target=1.0) == pytest.approx(2.5 / 4)

    def test_probability_of_improvement_counts_pairs_and_halves_ties(self) -> None:
        """Task 1: of (1,0) (1,2) (3,0) (3,2) three are won; task 2: one tie, one win, two pairs."""
        assert probability_of_improvement([[1, 3]], [[0, 2]]) == 0.75
        assert probability_of_improvement([[1, 3], [5]], [[0, 2], [5, 4]]) == pytest.approx((0.75 + 0.75) / 2)
        assert probability_of_improvement([[1, 2]], [[1, 2]]) == 0.5

    def test_probability_of_improvement_weighs_tasks_alike_however_many_runs_they_have(self) -> None:
        assert probability_of_improvement([[1], [0] * 50], [[0], [1] * 50]) == 0.5

    def test_profile_is_the_share_above_each_threshold(self) -> None:
        shares = performance_profile([[1, 2], [3, 4]], [0, 1, 2.5, 4])
        assert shares.tolist() == [1.0, 0.75, 0.5, 0.0]

    def test_area_is_the_mean_return_over_epsilon(self) -> None:
        """Trapezoids: 0.1 · 15 + 0.3 · 6 over 0.4."""
        assert area_under_curve([0, 0.1, 0.4], [20, 10, 2]) == pytest.approx((1.5 + 1.8) / 0.4)
        assert area_under_curve([0, 7], [3, 3]) == 3.0


class TestPareto:
    points = ((1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (4.0, 1.0), (0.5, 4.5), (3.0, 1.0))

    def test_front_by_hand(self) -> None:
        assert pareto_front(self.points) == [0, 1, 3]
        assert pareto_front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]

    def test_hypervolume_by_hand(self) -> None:
        """Steps above (0, 0): 1 · 5 + 1 · 4 + 2 · 1."""
        assert hypervolume(self.points, reference=(0.0, 0.0)) == 11.0
        assert hypervolume(self.points, reference=(1.0, 0.0)) == 1 * 4 + 2 * 1
        assert hypervolume([(-1.0, 9.0)], reference=(0.0, 0.0)) == 0.0

    def test_hypervolume_against_counting_cells(self) -> None:
        points = np.random.default_rng(0).integers(0, 12, size=(7, 2))
        cells = sum(
            any(p[0] > x and p[1] > y for p in points) for x, y in itertools.product(range(12), range(12))
        )
        assert hypervolume(points, reference=(0.0, 0.0)) == cells

    def test_what_is_beaten_adds_nothing(self) -> None:
        more = [*self.points, (1.9, 3.9)]
        assert hypervolume(more, reference=(0.0, 0.0)) == 11.0


class TestBootstrap:
    def test_all_resamples_of_two_runs(self) -> None:
        """{0, 1} resampled has mean 0, ½, 1 with odds 1 : 2 : 1, so the 95 % interval is [0, 1]."""
        interval = stratified_bootstrap(interquartile_mean, [[0.0, 1.0]], resamples=500)
        assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)

    def test_tasks_are_strata(self) -> None:
        """Between tasks nothing is mixed: constant tasks have no width, whatever lies between them."""
        interval = stratified_bootstrap(interquartile_mean, [[0.0, 0.0], [9.0, 9.0]], resamples=200)
        assert (interval.mean, interval.low, interval.high) == (4.5, 4.5, 4.5)

    def test_the_mean_of_many_runs_has_the_textbook_width(self) -> None:
        runs = np.random.default_rng(1).normal(size=400)
        interval = stratified_bootstrap(lambda tasks: np.mean(tasks[0], axis=-1), [runs], resamples=2000)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * runs.std() / 20, rel=0.1)

    def test_two_methods_are_resampled_apart(self) -> None:
        ours, theirs = [[1.0, 2.0, 3.0, 4.0, 5.0]], [[0.5, 1.5, 2.5, 3.5, 4.5]]
        interval = stratified_bootstrap(probability_of_improvement, ours, theirs, resamples=500)
        assert interval.mean == 0.6
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < 0.4
        assert interval.high > 0.8
