"""Schedules in RLlib's notation."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr.core.checks import as_schedule, grouped, maximum, minimum, value_at


def test_a_number_is_constant() -> None:
    assert [value_at(as_schedule(0.5, name="x"), t) for t in (0, 10)] == [0.5, 0.5]


def test_breakpoints_are_joined_by_lines_and_the_last_value_holds() -> None:
    schedule = as_schedule([[0, 0.0], [100, 0.0], [300, 1.0]], name="x")
    assert [value_at(schedule, t) for t in (0, 100, 200, 300, 1000)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert (minimum(schedule), maximum(schedule)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "value",
    ["fast", True, None, [[10, 0.0]], [[0, 1], [0, 2]], [[0, 1], [5]], [], -1, [[0, -1]], float("nan")],
)
def test_anything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        as_schedule(value, name="coefficient")


def test_groups_keep_the_order_of_keys_and_values() -> None:
    found = grouped([("b", 2), ("a", 1), ("b", 1), ("a", 1)])
    assert list(found.items()) == [("b", [2, 1]), ("a", [1, 1])]
