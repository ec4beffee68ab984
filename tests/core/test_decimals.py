"""The precision of returns follows from their scale, whatever the environment pays in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from marl_aajr.core.checks import decimals_for, decimals_of, written
from marl_aajr.report.estimates import Estimate


def estimate(mean: float, width: float | None) -> Estimate:
    low, high = (None, None) if width is None else (mean - width / 2, mean + width / 2)
    return Estimate(mean, low, high, (), "runs", 0.95)


@pytest.mark.parametrize(
    ("mean", "width", "decimals"),
    [
        (-40.0, 250.0, 0),
        (-40.0, 25.0, 0),
        (-40.0, 2.5, 1),
        (-40.0, 0.25, 2),
        (-40.0, 1e-9, 4),
        (123456.7, 2.5, 0),
        (0.0123, 0.004, 4),
        (-40.0, None, 1),
        (1234.5, None, 0),
        (0.0123, None, 4),
        (0.0, None, 1),
        (0.0, 0.25, 2),
    ],
)
def test_two_digits_of_the_interval_or_three_of_the_return(
    mean: float, width: float | None, decimals: int
) -> None:
    assert decimals_for([estimate(mean, width)]) == decimals


def test_an_interval_that_is_a_point_says_nothing() -> None:
    assert decimals_for([estimate(-40.0, 0.0)]) == decimals_for([estimate(-40.0, None)]) == 1


def test_the_typical_return_decides_for_all() -> None:
    assert decimals_of([-40.0, -41.0, 0.001]) == 1
    assert decimals_of([0.02, 0.03, 5.0]) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-27.123, "-27.1"),
        (-1234567.8, "-1,234,568"),
        (0.01234, "0.0123"),
        (1.2345e-9, "1.23e-09"),
        (0.0, "0.0"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_by_itself(value: float, text: str) -> None:
    assert written(value) == text


def test_there_is_no_negative_zero() -> None:
    assert written(-0.04, 1) == "0.0"


def test_the_command_line_need_not_wait_for_torch() -> None:
    code = "import sys, marl_aajr.core.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
