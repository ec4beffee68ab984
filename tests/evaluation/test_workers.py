"""Rows that Ray workers share, and when they do."""

from __future__ import annotations

import json
import time
from typing import Any
from unittest.mock import MagicMock, patch

import pytest

from marl_aajr.evaluation import Evaluation, evaluate, row_games, workers
from marl_aajr.evaluation.workers import _may_spread
from marl_aajr.rollout.environments import resolve
from tests.evaluation.players import network, sign_reader, signs, suite, team

APART = {"agent_0": "pair", "agent_1": "pair", "agent_2": "other"}
SPREAD = resolve("marl_aajr.envs.simple_spread_v3", {"max_cycles": 5, "env.teams": APART})


def same_but_for_rounding(a: Evaluation, b: Evaluation) -> bool:
    """PyTorch rounds a row by its place in a batch."""
    near = json.loads(
        b.model_dump_json(), parse_float=lambda digits: pytest.approx(float(digits), rel=1e-5, abs=1e-6)
    )
    return bool(json.loads(a.model_dump_json()) == near)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left is worth the start of workers."""
    monkeypatch.setattr("marl_aajr.evaluation.workers._WORTH", 0.0)


def test_short_work_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    hire = MagicMock()
    monkeypatch.setattr("marl_aajr.evaluation.workers._started", hire)
    victim = team(signs(), sign_reader())
    evaluate(victim, suite=suite())
    evaluate(victim, suite=suite(), workers=1)
    hire.assert_not_called()


@pytest.mark.usefixtures("unhurried")
def test_where_workers_cannot_be_had_this_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "marl_aajr.evaluation.workers._started", MagicMock(side_effect=ValueError("no Ray here"))
    )
    victim = team(signs(), sign_reader())
    assert evaluate(victim, suite=suite()) == evaluate(victim, suite=suite(), workers=1)
    with pytest.raises(ValueError, match="no Ray here"):
        evaluate(victim, suite=suite(), workers=2)


@pytest.mark.usefixtures("ray_session")
def test_within_a_task_of_ray_nobody_is_hired() -> None:
    """A trial of Tune has its cores; workers would wait for others."""
    import ray

    assert _may_spread()
    assert not ray.get(ray.remote(_may_spread).remote())


ASKED: dict[str, Any] = {
    "suite": suite(
        attacks=["noise", "pgd-margin", {"attack": "robust-sarsa", "experience": 100, "updates": 3}],
        epsilons=[0.3, 0.5],
        actions=["sampled", "greedy"],
        budget="agents=1,steps=2,timing=strategic",
    ),
    "opponents": {"stranger": team(SPREAD, network(5, 18, seed=1))},
}


@pytest.fixture(scope="module")
def here() -> Evaluation:
    """What this process plays alone."""
    return evaluate(team(SPREAD), SPREAD, workers=1, **ASKED)


def test_attacks_of_several_rows_are_computed_at_once(here: Evaluation) -> None:
    with patch.object(row_games, "_SIDE_BY_SIDE", 1):
        assert same_but_for_rounding(here, evaluate(team(SPREAD), SPREAD, workers=1, **ASKED))
    rows = here.results[0]
    assert rows.opponents[0].attacks != rows.attacks


@pytest.mark.usefixtures("ray_session", "unhurried")
def test_ray_workers_play_to_the_same_numbers(here: Evaluation) -> None:
    """Rows do not know of each other, so it does not matter who plays them, or who finds the worst agent."""
    import ray

    told: list[int] = []
    while ray.available_resources().get("CPU", 0) < 2:
        time.sleep(0.1)  # somebody else's actors are on their way out
    with patch.object(workers, "_serve", side_effect=workers._serve) as helped:
        there = evaluate(team(SPREAD), SPREAD, on_progress=lambda p: told.append(p.done), **ASKED)
    helped.assert_called()
    assert there == here
    each = 7 * 6 + (2 * 6 + 1) * 4
    assert told[-1] == 2 * 2 * each, "two sides: six attacks on two agents each, and the calibration"
