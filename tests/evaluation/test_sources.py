"""Whatever has a folder can be evaluated: runs, saved victims, RLlib checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.sources import evaluations_of
from tests.cli.test_evaluate import finished_run
from tests.evaluation.players import sign_reader, signs, team

SPEC = signs(longest=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return team(SPEC, sign_reader()).save(tmp_path / "mine")


def test_a_saved_victim_leaves_its_result_beside_it(saved: Path) -> None:
    result = evaluate(saved, attacks=["fgsm"], epsilons=[1.1], episodes=4)
    [file] = (saved.parent / "mine-evaluations").iterdir()
    assert json.loads(file.read_text())["results"][0]["clean"]["mean"] == result.clean.mean
    assert sorted(path.name for path in saved.iterdir()) == ["victim.json", "victim.safetensors"]


def test_the_result_goes_where_it_is_told(saved: Path, tmp_path: Path) -> None:
    evaluate(saved, episodes=2, out=tmp_path / "there" / "result.json")
    assert json.loads((tmp_path / "there" / "result.json").read_text())["episodes"] == 2
    assert not (saved.parent / "mine-evaluations").exists()


def test_a_saved_victim_may_play_elsewhere(saved: Path) -> None:
    result = evaluate(saved, SPEC.name, env_kwargs={"longest": 1}, episodes=3)
    assert result.env.kwargs == {"longest": 1}
    assert result.clean.returns == (3.0, 3.0, 3.0), "three agents, one step"


def test_a_run_knows_its_environment(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert evaluations_of(run) == run / "evaluations"
    with pytest.raises(ValueError, match=r"expected no environment for the run .*run, which has its own"):
        evaluate(run, "simple_spread_v3")
    with pytest.raises(ValueError, match=r"expected the name of an environment with its arguments .*--env"):
        evaluate(run, env_kwargs={"longest": 1})


def test_surrogates_come_from_anywhere(saved: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "run")
    for victim, surrogate in ((saved, other), (other, saved)):
        result = evaluate(victim, attacks=["transfer"], epsilons=[1.1], episodes=4, surrogates=[surrogate])
        assert result.attacks[0].success_rate > 0


def test_a_checkpoint_must_be_told_where_it_plays(tmp_path: Path) -> None:
    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the environment of the RLlib checkpoint .*--env NAME"):
        evaluate(tmp_path)


def test_other_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"of a run, of a saved victim or of an RLlib checkpoint, got .*none"
    ):
        evaluate(tmp_path / "none")
