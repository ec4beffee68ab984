from __future__ import annotations

import pytest

from marl_aajr.report.statistics import Estimate
from marl_aajr.report.wording import decimals_for, listing, number, some, with_interval


def estimate(mean: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(mean, low, high, (), "runs", 0.95)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(-40.26, 1, "−40.3"), (-0.04, 1, "0.0"), (1234567.0, 0, "1\u202f234\u202f567"), (2.0, 2, "2.00")],
)
def test_numbers(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals=decimals) == text


@pytest.mark.parametrize(("width", "decimals"), [(250.0, 0), (25.0, 0), (2.5, 1), (0.25, 2), (1e-9, 4)])
def test_decimals_show_two_digits_of_the_interval(width: float, decimals: int) -> None:
    assert decimals_for([estimate(0.0, 0.0, width)]) == decimals


def test_decimals_without_any_interval() -> None:
    assert decimals_for([estimate(1.0, None, None), estimate(1.0, 1.0, 1.0)]) == 1


def test_intervals_do_not_break_over_lines() -> None:
    assert with_interval(estimate(-1.0, -2.0, 0.0), decimals=0) == "−1\u00a0[−2,\u00a00]"


def test_lists() -> None:
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a, x=1", "a, x=2", "c"]) == "a, x=1; a, x=2 and c"
    assert some(list("abcd"), of=7, noun="methods") == "4 of the 7 methods"
