"""Best responses against the closed form of a matrix game, and the curves that say how far one has come."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl_aajr.adversaries.learning_curve import POINTS, last_rise, learning_curve
from marl_aajr.adversaries.request import AdversaryRequest
from marl_aajr.adversaries.store import RECORD, find_finished
from marl_aajr.adversaries.training import train_adversary
from marl_aajr.cli.adversary import verdict
from marl_aajr.evaluation import Replacement, evaluate, everybody_met, exploitability
from marl_aajr.evaluation.best_responses import response_checks
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from marl_aajr.victims import Victim, fingerprint
from tests.matrix_game import matrix_game, players
from tests.training.runs import tiny

ROCK, PAPER, SCISSORS = range(3)
GAME = matrix_game()


@pytest.fixture(scope="module")
def rock(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run: rock, against scissors, which it beats in both of two steps."""
    directory = RunDirectory(tmp_path_factory.mktemp("matrix") / "rock")
    quick = {"train_batch_size": 200, "minibatch_size": 100, "epochs": 5, "lr": 0.02, "entropy_coeff": 0.0}
    env = {"name": GAME.name, "kwargs": dict(GAME.kwargs)}
    directory.create(tiny(env=env, ppo=quick, model={"hidden": [8]}))
    directory.unlock()
    pure = players(ROCK, SCISSORS)
    # Under names of their own: a response begins from nothing.
    renamed = {agent: f"pure_{agent}" for agent in pure.agents}
    modules = {renamed[agent]: module for agent, module in pure.modules.items()}
    replace(pure, module_of=renamed, modules=modules).save(directory.victim)
    directory.write_status(Status("finished", iteration=1, env_steps=600))
    return directory


@pytest.fixture(scope="module")
def response(rock: RunDirectory, ray_session: None) -> Path:
    """The best response to it: paper."""
    return train_adversary(
        rock.path, kind="best-response", env_steps=6000, search=2, seeds=2, threat={"team": "rows"}
    )


def test_training_finds_the_best_response_of_a_matrix_game(rock: RunDirectory, response: Path) -> None:
    record = json.loads((response / RECORD).read_text())
    assert [row["settings"] for row in record["tried"]] == [{}, {}, {"gamma": 0.99}, {"gamma": 0.99}]
    seeds = [RunDirectory(response / "search" / str(n)).config().seed for n in (1, 2, 3, 4)]
    assert seeds[0] == seeds[2] != seeds[1] == seeds[3]
    assert 6000 <= record["env_steps"] < 6400
    assert record["selection"] == {"trained": 2.0, "lost": 2.0, "clean": -2.0}
    assert record["curve"][-1][0] == record["env_steps"]
    assert record["curve"][-1][1] > 1.5
    asked = AdversaryRequest(kind="best-response", env_steps=6000, search=2, seeds=2, threat={"team": "rows"})
    digest = fingerprint(Victim.load(rock.victim))
    assert find_finished(rock.path, asked.settled(rock.path), digest=digest) == response
    more = asked.changed(seeds=3).settled(rock.path)
    assert find_finished(rock.path, more, digest=digest) is None


def test_an_evaluation_says_what_is_lost_to_it(rock: RunDirectory, response: Path) -> None:
    result = evaluate(rock.path, adversaries=[response], episodes=8, team="rows")
    found = exploitability(result.results[0])
    assert found is not None
    assert found.lost.difference == 4.0
    assert found.stronger is None
    training = found.response.training
    assert training is not None
    assert (training.pays, training.search, training.seeds) == ("loss", 2, 2)
    assert training.env_steps == training.curve[-1][0]
    (check,) = (check for check in result.checks if check.name.startswith("best response"))
    assert (check.verdict, found.still_rising) == ("pass", False)


@pytest.mark.parametrize("place", ["pool", "adversaries"])
def test_one_that_another_opponent_beats_is_undertrained(rock: RunDirectory, place: str) -> None:
    """Rock draws against rock, and loses to paper."""
    column: dict[str, Any] = {"agents": ("column",)}
    replaced = [Replacement(kind="best-response", victim=players(ROCK, ROCK), source="response", **column)]
    pool, paper = {}, players(ROCK, PAPER)
    if place == "pool":
        pool = {"paper": paper}
    else:
        replaced.append(Replacement(kind="opponent", victim=paper, source="paper", **column))
    result = evaluate(rock.path, replace=replaced, opponents=pool, episodes=8, team="rows")
    found = exploitability(result.results[0])
    assert found is not None
    assert (found.lost.difference, found.stronger) == (2.0, ("paper", -2.0))
    (check,) = response_checks(result.results[0])
    assert check.verdict == "warn"
    assert "it leaves the team a return of 0.0, paper leaves -2.00." in check.text


def test_a_response_to_others_is_a_stranger(response: Path) -> None:
    """Paper learned against rock; scissors beat it, and may meet it in a pool, which rock may not."""
    other = players(SCISSORS, ROCK)
    (rows,) = evaluate(other, adversaries=[response], episodes=8, team="rows").results
    assert exploitability(rows) is None
    assert list(response_checks(rows)) == []
    met = everybody_met(rows, {"row": "rows", "column": "columns"}, "rows")
    assert [(one.kind, one.outcome.mean) for one in met][:2] == [("own", -2), ("stranger", 2)]
    (pooled,) = evaluate(other, opponents=[response], episodes=8, team="rows").results
    assert [(one.kind, one.clean.mean) for one in pooled.opponents] == [("stranger", 2)]


def test_a_response_to_the_team_is_no_opponent_for_its_pool(rock: RunDirectory, response: Path) -> None:
    message = "to meet every team as a stranger, got one that was trained against this one; .*--adversary"
    with pytest.raises(ValueError, match=message):
        evaluate(rock.path, opponents=[response], episodes=8, team="rows")


def test_a_curve_that_rises_at_its_end_says_so() -> None:
    steps = np.arange(1, 201) * 100
    noise = np.random.default_rng(0).normal(size=200)

    def curve(values: Any) -> list[tuple[int, float]]:
        records = [{"env_steps": int(s), "return_mean": float(v)} for s, v in zip(steps, values, strict=True)]
        return learning_curve([{"env_steps": 1, "return_mean": None}, *records], before=7)

    rising, flat = curve(np.linspace(0, 100, 200) + noise), curve(100 * (1 - np.exp(-steps / 500)) + noise)
    assert len(rising) == POINTS
    assert rising[-1][0] == 20_007
    found, still = last_rise(rising), last_rise(flat)
    assert found is not None
    assert still is not None
    assert found.mean == pytest.approx(25, abs=2)
    assert found.low < found.mean < found.high
    assert (found.goes_on(lost=100), found.goes_on(lost=1000)) == (True, False)
    assert not still.goes_on(lost=100)
    assert last_rise(rising[:19]) is None


def test_an_adversary_that_still_learned_is_announced_as_such(response: Path) -> None:
    record = json.loads((response / RECORD).read_text())
    said = "On other episodes than it learned on the team's return falls from 2.00 to -2.00"
    assert verdict(record).startswith(said)
    assert "still learning" not in verdict(record)
    assert "still learning" in verdict(record | {"curve": [[step, step] for step in range(40)]})
