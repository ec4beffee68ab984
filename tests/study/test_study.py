"""Small studies for real: what they leave, what they survive, and that order and concurrency change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from marl_aajr.study.study import Plan, prepare
from marl_aajr.study.watch import Board
from tests.study.files import do, run, write_study
from tests.training.runs import numbers

pytestmark = pytest.mark.usefixtures("ray_session")

Done = tuple[Plan, Board]
SPREAD = {"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2}}
METHODS = [{"name": "none"}, {"name": "aajr", "adversarial_weight": 0.5, "sample_fraction": 0.5}]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two methods and two seeds, as many at a time as there is room for."""
    folder = tmp_path_factory.mktemp("study")
    return run(write_study(folder, environments=[SPREAD], methods=METHODS, seeds=[0, 1]), folder / "out")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """An environment that works, one that fails once and one that always does."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "there").touch()
    environments = [
        {"name": "tests.study.faulty:always", "label": "always"},
        {"name": "tests.study.faulty:once", "label": "once", "kwargs": {"marker": f"{folder}/crashed"}},
        {"name": "tests.study.faulty:once", "label": "never", "kwargs": {"marker": f"{folder}/there"}},
    ]
    return run(write_study(folder, environments=environments, retries=1), folder / "out")


def judged(plan: Plan, name: str) -> Any:
    """All numbers of a run's evaluation."""
    (file,) = plan.folder.run(name).evaluations.glob("*.json")
    return json.loads(file.read_text())


def test_everything_is_done_once_and_written_down(done: Done) -> None:
    plan, board = done
    assert [progress.state for progress in board.nodes.values()] == ["finished"] * 8
    assert plan.folder.report.read_text().count("<h1") == 1
    events = [event["event"] for event in plan.folder.events()]
    assert events.count("started") == events.count("finished") == 8
    assert events[0] == "study"
    assert events[-2:] == ["session", "written"]


def test_the_table_has_every_return(done: Done) -> None:
    plan, _ = done
    rows = pyarrow.parquet.read_table(plan.folder.results).to_pylist()
    assert {(row["run"], row["attack"], row["epsilon"]) for row in rows} == {
        (name.name, *attack) for name in plan.runs for attack in (("none", 0.0), ("noise", 0.1), ("pgd", 0.1))
    }
    for row in rows:
        found = judged(plan, row["run"])
        outcomes = {"none": found["clean"]} | {each["attack"]: each for each in found["attacks"]}
        assert row["return"] == outcomes[row["attack"]]["return"]
        assert row["returns"] == outcomes[row["attack"]]["returns"]
        assert (row["method"], row["seed"]) == (row["run"].split("-")[1], int(row["run"][-1]))


def test_what_exists_is_not_repeated(done: Done) -> None:
    plan, _ = done
    before = len(plan.folder.events())
    do(prepare(plan.source.path, out=plan.folder.path))
    assert [event["event"] for event in plan.folder.events()[before:]] == ["study", "session", "written"]


def test_another_order_and_one_run_at_a_time_give_the_same_numbers(done: Done, tmp_path: Path) -> None:
    plan, _ = done
    file = write_study(
        tmp_path,
        environments=[SPREAD],
        methods=METHODS[::-1],
        seeds=[1, 0],
        evaluation={"suite": "suite.yaml"},
    )
    other, _ = run(file, tmp_path / "out", max_concurrent=1)
    for each in plan.runs:
        assert numbers(other.folder.run(each.name).path) == numbers(plan.folder.run(each.name).path)
        assert judged(other, each.name) == judged(plan, each.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"env_steps": 300}}, r"simple_spread_v3-none-s0: env_steps: 400 → 300.*change it back"),
        ({"seeds": [0]}, "the run simple_spread_v3-.*-s1 is no longer part of it"),
        ({"evaluation": {"suite": "quick"}}, r'evaluation.suite: "suite.yaml" → "quick"'),
        ({"adversaries": [{"kind": "traitor", "env_steps": 100}]}, "adversaries"),
    ],
)
def test_a_study_that_has_changed_is_refused(done: Done, change: Any, message: str, tmp_path: Path) -> None:
    plan, _ = done
    whole = {"environments": [SPREAD], "methods": METHODS, "seeds": [0, 1], **change}
    whole["run"] = {**__import__("tests.study.files", fromlist=["TINY"]).TINY["run"], **change.get("run", {})}
    with pytest.raises(ValueError, match=rf"tiny\.yaml.*{message}"):
        prepare(write_study(tmp_path, **whole), out=plan.folder.path)


def test_a_study_may_grow(done: Done, tmp_path: Path) -> None:
    plan, _ = done
    file = write_study(tmp_path, environments=[SPREAD], methods=METHODS, seeds=[0, 1, 2])
    grown = prepare(file, out=plan.folder.path)
    assert sum(not plan.folder.done(node) for node in grown.nodes.values()) == 4


def test_a_failed_run_stops_no_other(faulty: Done) -> None:
    plan, board = faulty
    states = {name: progress.state for name, progress in board.nodes.items()}
    assert states == {
        "always-none-s0": "failed",
        "once-none-s0": "finished",
        "never-none-s0": "finished",
        "always-none-s0/judgement": "impossible",
        "once-none-s0/judgement": "finished",
        "never-none-s0/judgement": "finished",
    }
    broken = board.nodes["always-none-s0"]
    assert broken.restarts == 1
    assert "the simulator has crashed" in broken.error
    assert Path(broken.log).read_text().count("Traceback") >= 2
    page = plan.folder.report.read_text()
    assert "always-none-s0" in page


def test_a_run_that_is_started_again_has_the_numbers_of_one_that_did_not_fail(faulty: Done) -> None:
    plan, board = faulty
    assert board.nodes["once-none-s0"].restarts == 1
    assert board.nodes["never-none-s0"].restarts == 0
    runs = [plan.folder.run(f"{label}-none-s0").path for label in ("once", "never")]
    assert numbers(runs[0]) == numbers(runs[1])
    assert [judged(plan, path.name)["clean"] for path in runs].count(judged(plan, runs[0].name)["clean"]) == 2


def test_a_study_that_is_told_to_stop_goes_on_where_it_was(done: Done, tmp_path: Path) -> None:
    plan, _ = done
    asked = []

    def soon() -> bool:
        asked.append(1)
        return len(asked) > 40

    file = write_study(tmp_path, environments=[SPREAD], methods=METHODS, seeds=[0, 1])
    stopped = do(prepare(file, out=tmp_path / "out"), should_stop=soon)
    assert 0 <= stopped.count("finished") < 8
    assert stopped.count("failed") == 0
    finished = do(prepare(file, out=tmp_path / "out"))
    assert finished.count("finished") == 8
    for each in plan.runs:
        assert numbers(tmp_path / "out" / "runs" / each.name) == numbers(plan.folder.run(each.name).path)


def test_runs_that_can_never_be_placed_are_refused_with_what_there_is(tmp_path: Path) -> None:
    runs = {"resources": {"env_runners": 9, "envs_per_runner": 4}, "env_steps": 400}
    file = write_study(tmp_path, run=runs)
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: resources: .* has 2 CPU and 0 GPU .*needs 10 CPU"):
        do(prepare(file, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_finished_work_is_kept_in_the_storage(tmp_path: Path) -> None:
    file = write_study(tmp_path, storage=f"file://{tmp_path}/store")
    run(file, tmp_path / "out")
    elsewhere = prepare(file, out=tmp_path / "elsewhere")
    board = do(elsewhere)
    assert board.count("finished") == 2
    assert "started" not in [event["event"] for event in elsewhere.folder.events()]
    assert elsewhere.folder.report.is_file()
