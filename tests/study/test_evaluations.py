"""An evaluation stands for what the study says now; another one is refused or done again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from marl_aajr.study.driver import prepare
from marl_aajr.study.progress import StudyPlan
from marl_aajr.training.files import write_json
from marl_aajr.training.run_record import Status
from tests.study.files import SUITE, write_study

TAG = {"name": "marl_aajr.envs.simple_tag_v3", "label": "tag"}


def evaluated(folder: Path, **study: Any) -> StudyPlan:
    """A study whose runs have been trained and evaluated, as its folder tells it."""
    plan = prepare(write_study(folder, **study), out=folder / "out")
    with plan.folder.begun(plan.study):
        for node in plan.nodes.values():
            run = plan.folder.run(node.run.name)
            if node.kind == "train":
                run.create(node.run.config)
                run.write_status(Status("finished"))
                run.unlock()
            if node.kind == "evaluate":
                run.evaluations.mkdir()
                write_json(run.evaluations / "found.json", {})
                plan.folder.note_evaluation(node, "found.json")
    return plan


def left(plan: StudyPlan) -> list[str]:
    return [name for name, node in plan.nodes.items() if not plan.folder.done(node)]


def test_what_has_been_evaluated_is_done(tmp_path: Path) -> None:
    plan = evaluated(tmp_path, seeds=[0, 1])
    assert left(prepare(plan.source.path, out=plan.folder.path)) == []


def test_another_content_of_the_suite_s_file_is_refused(tmp_path: Path) -> None:
    plan = evaluated(tmp_path)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({**SUITE, "episodes": 50}))
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: evaluation.suite.episodes: 2 → 50; .*change it"):
        prepare(plan.source.path, out=plan.folder.path)


def test_another_team_is_refused(tmp_path: Path) -> None:
    plan = evaluated(tmp_path, environments=[TAG])
    file = write_study(tmp_path, environments=[{**TAG, "team": "agent"}])
    (line,) = [n for n, text in enumerate(file.read_text().splitlines(), start=1) if "team: agent" in text]
    with pytest.raises(ValueError, match=rf'tiny\.yaml:{line}: evaluation.team: null → "agent"; .*change it'):
        prepare(file, out=plan.folder.path)


def test_another_team_than_the_adversaries_were_trained_against_is_refused(tmp_path: Path) -> None:
    plan = prepare(write_study(tmp_path, environments=[TAG]), out=tmp_path / "out")
    with plan.folder.begun(plan.study):
        (plan.folder.run(plan.runs[0].name).path / "adversaries" / "sa-rl-eps0.1").mkdir(parents=True)
    file = write_study(tmp_path, environments=[{**TAG, "team": "agent"}])
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: environments.0.team: None → agent; .*change it"):
        prepare(file, out=plan.folder.path)


def test_a_run_that_has_another_surrogate_now_is_evaluated_again(tmp_path: Path) -> None:
    plan = evaluated(tmp_path, seeds=[0, 1])
    grown = prepare(write_study(tmp_path, seeds=[0, 1, 2]), out=plan.folder.path)
    first, second = plan.runs
    new = "simple_spread_v3-none-s2"
    assert left(grown) == [new, f"{second.name}/evaluation", f"{new}/evaluation"]
    grown.folder.drop_outdated(grown.nodes.values())
    assert grown.folder.evaluation_files(first)
    assert not grown.folder.evaluation_files(second)
    assert not any(grown.folder.run(second.name).evaluations.iterdir())


def test_a_run_whose_folder_has_been_deleted_is_trained_and_evaluated_again(tmp_path: Path) -> None:
    plan = evaluated(tmp_path)
    (run,) = plan.runs
    shutil.rmtree(plan.folder.run(run.name).path)
    assert left(prepare(plan.source.path, out=plan.folder.path)) == [run.name, f"{run.name}/evaluation"]
    assert plan.folder.evaluation_files(run) == []
