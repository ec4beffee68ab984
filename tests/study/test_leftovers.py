"""What a process of a study does with what an earlier one left, and what the report says of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from marl_aajr.adversaries.store import is_finished, search_folder
from marl_aajr.report import Notes
from marl_aajr.rollout.environments import resolve
from marl_aajr.study import report
from marl_aajr.study.driver import prepare
from marl_aajr.study.worker import StopFlag, StudyLocation, do_node
from marl_aajr.training.files import append_line
from marl_aajr.training.run_record import Status, software
from tests.adversaries.test_agent_game import each_its_own
from tests.study.files import TINY, write_study

TRAITOR = {"kind": "traitor", "agents": ["agent_0"], "env_steps": 100}


def test_an_adversary_that_was_killed_before_it_was_written_down_is_begun_anew(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(write_study(tmp_path, adversaries=[TRAITOR]), out=tmp_path / "out")
    (node,) = (node for node in plan.nodes.values() if node.kind == "adversary")
    with plan.folder.begun(plan.study):
        place = StudyLocation(str(plan.folder.path), plan.folder.identity)
    victims = plan.folder.run(node.run.name)
    victims.create(node.run.config)
    victims.unlock()
    (environment,) = TINY["environments"]
    each_its_own(resolve(environment["name"], environment["kwargs"])).save(victims.victim)
    victims.write_status(Status("finished", iteration=1, env_steps=400))
    adversary = plan.folder.trained(node).path
    search_folder(adversary).mkdir(parents=True)

    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", reports.append)
    flag = StopFlag.remote()  # type: ignore[attr-defined]
    do_node({"node": node.name}, nodes=plan.nodes, location=place, flag=flag, expected=software())
    assert reports[-1]["outcome"] == "finished", reports[-1]
    assert is_finished(adversary)


@pytest.mark.parametrize("there", [True, False])
def test_a_fault_of_training_is_told_even_where_the_directory_that_tells_of_it_was_another_node_s(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(write_study(tmp_path), out=tmp_path / "out")
    (run,) = plan.runs
    directory = plan.folder.run(run.name)
    with plan.folder.begun(plan.study):
        append_line(
            plan.folder.events_file, {"event": "restarted", "node": run.name, "error": "the node has died"}
        )
    if there:
        directory.create(run.config)
        directory.unlock()
        directory.append_event("resumed", iteration=2, after="failed", error="the node has died")
    pages: list[Notes] = []
    monkeypatch.setattr(report, "write_report", lambda runs, out, *, notes, **rest: pages.append(notes))
    report.write_page(plan)
    (incident,) = pages[0].restarts
    assert (incident.run, incident.times) == (run.name, 1)
    how = "went on from its last checkpoint" if there else "was begun again"
    assert incident.what == f"{how} after the node has died"
