from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl_aajr.report import EvaluatedRun, compare, load_run
from marl_aajr.report.learning_curves import (
    MOST_POINTS,
    SECONDS,
    mean_of,
    metric_curve,
    modules,
    regulariser_metrics,
    return_curve,
    teams,
    thinned,
)
from marl_aajr.report.methods import by_method
from marl_aajr.report.style import looks
from tests.report.factory import config, metrics, write_method, write_run


def run_with(tmp_path: Path, lines: list[dict[str, Any]]) -> EvaluatedRun:
    return load_run(write_run(tmp_path / "run", configuration=config("aajr"), lines=lines))


def test_iterations_without_an_episode_are_no_points(tmp_path: Path) -> None:
    steps, values = return_curve(run_with(tmp_path, metrics(regularised=True, iterations=10)))

    assert list(steps) == [10_000.0 * i for i in range(3, 11)]
    assert np.isfinite(values).all()


def test_time_in_the_penalty_is_a_share_of_each_iteration(tmp_path: Path) -> None:
    lines = metrics(regularised=True, iterations=2)
    for line, seconds, penalty in zip(lines, (10.0, 14.0), (1.0, 2.0), strict=True):
        line["seconds"] = seconds
        line["modules"]["shared"][SECONDS] = penalty

    _, shares = metric_curve(run_with(tmp_path, lines), module="shared", key=SECONDS)
    assert list(shares) == [0.1, 0.5]


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    lines = metrics(regularised=True, iterations=3)
    lines[1]["modules"]["shared"]["aajr/penalty"] = float("inf")

    _, values = metric_curve(run_with(tmp_path, lines), module="shared", key="aajr/penalty")
    assert [math.isnan(value) for value in values] == [False, True, False]


def test_teams_and_modules_in_order(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-1.0], modules=("plain",), teams=("b", "a"))
    paths += write_method(tmp_path, "aajr", clean=[-1.0], modules=("m1", "m0"), teams=("b", "a"))
    methods = by_method(load_run(path) for path in paths)

    assert teams(methods) == ("b", "a")
    assert modules(methods) == ("m1", "m0")  # the plain method logs no metric of a regulariser


def test_metrics_of_a_module_name_its_team(tmp_path: Path) -> None:
    lines = metrics(regularised=True, iterations=3, modules=("agent", "shared"))
    for line in lines:
        line["module_teams"] = {"agent": "good"}
    comparison = compare([run_with(tmp_path, lines)])
    shown = regulariser_metrics(comparison, looks([row.method for row in comparison.rows]), key="k")
    assert [group.module for group in shown] == ["agent of team good", "shared"]


def test_mean_of_curves_is_taken_where_all_are_known() -> None:
    x, y = mean_of(
        [
            (np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0])),
            (np.array([1.0, 5.0]), np.array([0.0, 4.0])),
        ]
    )

    assert list(x) == [1.0, 2.0, 4.0]
    assert y == pytest.approx([0.5, 1.5, 3.5])


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [(np.array([0.0]), np.array([math.nan])), (np.array([0.0]), np.array([1.0]))],
        [(np.array([0.0, 1.0]), np.array([1.0, 1.0])), (np.array([2.0, 3.0]), np.array([1.0, 1.0]))],
    ],
)
def test_mean_of_nothing_common_is_empty(curves: Any) -> None:
    x, y = mean_of(curves)

    assert len(x) == len(y) == 0


def test_each_method_has_a_look_of_its_own(tmp_path: Path) -> None:
    paths = write_method(tmp_path, "none", clean=[-1.0])
    for i in range(20):
        paths += write_method(tmp_path / str(i), "aajr", settings={"coefficient": i}, clean=[-1.0])
    drawn = looks(by_method(load_run(path) for path in paths))

    assert len(set(drawn)) == 21
    assert drawn[0].colour not in {look.colour for look in drawn[1:]}


@pytest.mark.parametrize("n", [1, 2, MOST_POINTS, MOST_POINTS + 1, 1000])
def test_long_curves_are_thinned_between_their_ends(n: int) -> None:
    x = np.arange(n, dtype=np.float64)
    steps, values = thinned((x, -x))
    assert len(steps) <= MOST_POINTS
    assert (steps[0], steps[-1]) == (0, n - 1)
    assert (np.diff(steps) > 0).all()
    assert (values == -steps).all()
    if n <= MOST_POINTS:
        assert len(steps) == n
