"""Metrics that an environment reports beside rewards, in the rows of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from marl_aajr.envs import pogema_v0
from torch import nn

from marl_aajr.cli.evaluate import show
from marl_aajr.evaluation import Evaluation, evaluate
from marl_aajr.evaluation.outcomes import Outcome
from marl_aajr.rollout.environments import resolve
from tests.evaluation.players import network, sign_reader, signs, team

OPTIONS = {"num_agents": 2, "size": 3, "density": 0.1, "obs_radius": 1, "max_episode_steps": 8}


@pytest.fixture(scope="module")
def found() -> Evaluation:
    spec = resolve(pogema_v0, OPTIONS)
    return evaluate(
        team(spec, nn.Sequential(nn.Flatten(), network(5, 27))),
        spec,
        attacks=[("pgd", 0.5), ("noise", 0.5)],
        actions=["sampled"],
        replace=["random:player_0"],
        episodes=12,
        num_envs=5,
        selection_episodes=4,
    )


def rows(evaluation: Evaluation) -> list[Outcome]:
    (result,) = evaluation.results
    return [result.clean, *result.attacks, *result.adversarial_agents]


def test_every_row_has_them_with_an_interval(found: Evaluation) -> None:
    """Agents are paid 1 at their goals, so that the individual success is a half of the return."""
    assert len(rows(found)) == 4
    for row in rows(found):
        success, individual = row.metrics["success"], row.metrics["individual_success"]
        assert np.allclose(individual.values, np.array(row.returns) / 2)
        assert [value == 1 for value in success.values] == [earned == 2 for earned in row.returns]
        assert success.mean == pytest.approx(np.mean(success.values))
        assert success.low is not None
        assert success.high is not None
        assert success.low <= success.mean <= success.high
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_the_terminal_shows_them(found: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    show(found, Path("run"), kept=Path("file"))
    shown = capsys.readouterr().out
    assert "success" in shown
    assert f"{found.results[0].clean.metrics['success'].mean:.3f}" in shown


def test_without_them_the_file_is_as_it_was() -> None:
    evaluation = evaluate(team(signs(), sign_reader()), signs(), attacks=[("noise", 0.5)], episodes=2)
    assert "metrics" not in evaluation.model_dump_json()
    assert evaluation.results[0].metrics == ()
    assert "metrics" not in json.loads(evaluation.model_dump_json())["results"][0]["clean"]
