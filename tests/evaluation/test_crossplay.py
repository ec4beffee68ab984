"""The cross-play matrix of runs whose returns are known, and who is rated above whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from marl_aajr.evaluation import ActionsResult, evaluate
from marl_aajr.evaluation.crossplay import CrossPlay
from marl_aajr.evaluation.ratings import elo
from marl_aajr.victims import Victim
from tests.evaluation.players import sign_reader, signs, team
from tests.evaluation.test_opponents import TURN, judged
from tests.matrix_game import players

ROCK, PAPER, SCISSORS = range(3)


@pytest.fixture(scope="module")
def results() -> dict[str, list[ActionsResult]]:
    """Two rocks are the pool; at home rock meets scissors. The liar's second run plays scissors itself."""
    pool = {"rock": players(SCISSORS, ROCK), "another": players(PAPER, ROCK), "paper": players(PAPER, PAPER)}
    runs = {"planted": [ROCK, ROCK], "better": [PAPER, PAPER], "mixed": [PAPER, SCISSORS]}
    return {
        name: [judged(pool, row, attacks=[TURN], episodes=4).results[0] for row in rows]
        for name, rows in runs.items()
    }


def test_the_matrix_its_margins_and_intervals_over_runs(results: dict[str, list[ActionsResult]]) -> None:
    found = CrossPlay.of(results)
    assert found.opponents == ("rock", "another", "paper")
    assert found.matrix.tolist() == [[0, 0, -2], [2, 2, 0], [0, 0, 1]]
    planted, better, mixed = found.team_means
    assert (planted.mean, better.mean, mixed.mean) == pytest.approx((-2 / 3, 4 / 3, 1 / 3))
    assert found.opponent_means == pytest.approx((2 / 3, 2 / 3, -1 / 3))
    assert found.cells[0][0] == type(planted)(0, 0, 0)
    low, high = found.cells[2][0].low, found.cells[2][0].high
    assert low is not None
    assert high is not None
    assert low + high == pytest.approx(0)
    assert high == pytest.approx(2 * 12.706, rel=1e-3)


def test_the_own_side_decides_nothing(results: dict[str, list[ActionsResult]]) -> None:
    """The planted team earns most at home, and is the last against the pool."""
    homes = {name: runs[0].clean.mean for name, runs in results.items()}
    assert max(homes, key=homes.__getitem__) == "planted"
    planted, better, mixed = CrossPlay.of(results).ratings(resamples=5)
    assert better.nash > mixed.nash > planted.nash
    assert better.elo > mixed.elo > planted.elo
    assert planted.first == 0
    assert planted.weight == pytest.approx(0, abs=1e-6)
    assert better.weight == pytest.approx(1 / 3, abs=1e-3)
    assert mixed.nash_interval is not None
    assert mixed.nash_interval[0] < mixed.nash_interval[1]
    assert better.nash_interval == pytest.approx((better.nash, better.nash), abs=1.0)


def test_under_attack_rock_becomes_scissors(results: dict[str, list[ActionsResult]]) -> None:
    attacked = CrossPlay.of(results, epsilon=1.1)
    assert attacked.matrix[0].tolist() == [-2, -2, 2]
    with pytest.raises(KeyError):
        CrossPlay.of(results, epsilon=0.3)


def test_one_run_has_no_intervals(results: dict[str, list[ActionsResult]]) -> None:
    found = CrossPlay.of({name: runs[:1] for name, runs in results.items()})
    assert found.team_means[0].low is None
    assert {(r.nash_interval, r.elo_interval, r.first) for r in found.ratings()} == {(None, None, None)}


def test_runs_that_met_others_are_refused(results: dict[str, list[ActionsResult]]) -> None:
    run = results["planted"][0]
    fewer = run.model_copy(update={"opponents": run.opponents[:1]})
    with pytest.raises(ValueError, match="met the same opponents, got rock and rock, another, paper"):
        CrossPlay.of({"a": [run], "b": [fewer]})
    with pytest.raises(ValueError, match="met the same opponents, got none"):
        CrossPlay.of({"a": [run.model_copy(update={"opponents": ()})]})


def test_partners_between_seeds() -> None:
    """Teams of one convention get on with each other; the one of the opposite convention with nobody."""
    spec = signs()
    teams: dict[str, Victim] = {}
    for name, scale in {"a": 1.0, "b": 2.0, "odd": -1.0}.items():
        reader = sign_reader()
        reader.weight.data *= scale
        teams[name] = team(spec, reader)
    asked: dict[str, Any] = {"episodes": 8, "num_envs": 4}
    results = {
        name: evaluate(victim, partners={n: v for n, v in teams.items() if n != name}, **asked).results[0]
        for name, victim in teams.items()
    }
    found = CrossPlay.between(results)
    assert found.teams == found.opponents == ("a", "b", "odd")
    a, _, odd = found.matrix
    assert a[0] == a[1] > 0 > odd[2] == -a[0]
    assert a[2] == pytest.approx(a[0] / 3)
    assert np.allclose(found.matrix[:2, :2], a[0])
    with pytest.raises(ValueError, match="got a without c"):
        CrossPlay.between({"a": results["a"], "c": results["b"]})


def test_elo_counts_a_tie_as_half_a_win() -> None:
    """Of two episodes the first team earns more in one, and as much in the other."""
    found = CrossPlay(("a", "b"), ("o",), (np.array([[[1.0, 1.0]]]), np.array([[[0.0, 1.0]]])))
    assert [rating.elo for rating in found.ratings()] == pytest.approx(elo([[0, 0.75], [0.25, 0]]))
