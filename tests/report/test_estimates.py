from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from marl_aajr.report.estimates import Estimate, Unit, listing, number, some, with_interval


def difference(unit: Unit, left: Sequence[float], right: Sequence[float], *, level: float) -> Estimate:
    return Estimate.over(unit, left, level=level).minus(Estimate.over(unit, right, level=level))


def test_interval_over_two_runs_is_the_textbook_one() -> None:
    found = Estimate.over("runs", [-41.0, -39.0], level=0.95)

    assert (found.mean, found.unit, found.values) == (-40.0, "runs", (-41.0, -39.0))
    assert found.low == pytest.approx(-40 - 12.7062, abs=1e-3)  # s/√n = 1
    assert found.high == pytest.approx(-40 + 12.7062, abs=1e-3)


def test_interval_over_runs_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    found = [Estimate.over("runs", list(runs), level=0.95) for runs in draws]
    covered = np.mean([e.low is not None and e.high is not None and e.low <= 0 <= e.high for e in found])

    assert covered == pytest.approx(0.95, abs=0.02)


def test_difference_over_runs_is_welchs() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 5.0, 7.0, 3.0]
    found = difference("runs", a, b, level=0.9)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)

    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_difference_of_constant_runs_is_certain() -> None:
    assert difference("runs", [3.0, 3.0], [1.0, 1.0], level=0.95) == Estimate(2.0, 2.0, 2.0, (), "runs", 0.95)


def test_paired_episodes_remove_what_the_episodes_share() -> None:
    draw = np.random.default_rng(1)
    hard = draw.normal(scale=50, size=100)
    left, right = hard + 2 + draw.normal(size=100), hard
    found = difference("episodes", list(left), list(right), level=0.95)

    assert found.low is not None
    assert found.high is not None
    assert 1.5 < found.low < 2 < found.high < 2.5


def test_difference_over_episodes_is_the_paired_t_test() -> None:
    a, b = [1.0, 5.0, 2.0, 4.0], [0.0, 1.0, 1.0, 5.0]
    found = difference("episodes", a, b, level=0.9)
    paired = stats.ttest_rel(a, b).confidence_interval(0.9)

    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
    assert found.values == (1.0, 4.0, 1.0, -1.0)


def test_one_episode_has_no_interval() -> None:
    found = difference("episodes", [1.0], [3.0], level=0.95)

    assert (found.mean, found.low, found.high) == (-2.0, None, None)


def test_between_one_run_and_several_there_is_no_interval() -> None:
    runs, alone = (Estimate.over(unit, [3.0, 4.0, 6.0], level=0.9) for unit in ("runs", "episodes"))
    assert (runs.minus(alone).low, runs.minus(alone).high) == (None, None)


def test_intervals_that_overlap_may_differ() -> None:
    """The same episodes, each one point better: the intervals nearly coincide, and the lead is certain."""
    worse = Estimate.over("episodes", [-90.0, -10.0, -50.0, -70.0], level=0.95)
    better = Estimate.over("episodes", [value + 1 for value in worse.values], level=0.95)

    assert worse.high is not None
    assert better.low is not None
    assert worse.high > better.low
    assert better.minus(worse).positive
    assert not worse.minus(better).positive


@pytest.mark.parametrize(("low", "positive"), [(0.1, True), (0.0, False), (-1.0, False), (None, False)])
def test_positive_means_an_interval_above_zero(low: float | None, positive: bool) -> None:
    assert Estimate(3.5, low, low and 7.0, (), "runs", 0.95).positive is positive


def estimate(mean: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(mean, low, high, (), "runs", 0.95)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(-40.26, 1, "−40.3"), (-0.04, 1, "0.0"), (1234567.0, 0, "1\u202f234\u202f567"), (2.0, 2, "2.00")],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals=decimals) == text


def test_intervals_do_not_break_over_lines() -> None:
    assert with_interval(estimate(-1.0, -2.0, 0.0), decimals=0) == "−1\u00a0[−2,\u00a00]"


def test_lists() -> None:
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a, x=1", "a, x=2", "c"]) == "a, x=1; a, x=2 and c"
    assert some(list("abcd"), of=7, noun="methods") == "4 of the 7 methods"
