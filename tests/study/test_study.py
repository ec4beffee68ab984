"""Small studies for real: what they leave, what they survive; order and concurrency change nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from marl_aajr.evaluation import Evaluation
from marl_aajr.study.driver import on_cluster, prepare
from marl_aajr.study.folder import run_exists
from marl_aajr.study.progress import GridProgress, StudyPlan
from marl_aajr.study.report import write_page
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status
from tests.cli.conftest import CLI, quiet_environment
from tests.patience import PATIENCE
from tests.study.files import do, write_study
from tests.training.runs import numbers

pytestmark = pytest.mark.usefixtures("ray_session")

METHODS = [{"name": "aajr", "adversarial_weight": 0.5, "sample_fraction": 0.5}]
"""A single one: scripts/examples/study_on_a_cluster.py runs a study of two."""


@dataclass(frozen=True)
class Done:
    """A study that has been done."""

    plan: StudyPlan
    grid: GridProgress

    def numbers(self, name: str) -> list[dict[str, Any]]:
        """Of a run's training."""
        return numbers(self.plan.folder.run(name).path)

    def evaluation(self, name: str) -> Evaluation:
        """Of a run."""
        (file,) = self.plan.folder.run(name).evaluations.glob("*.json")
        return Evaluation.model_validate_json(file.read_text())

    def events(self) -> list[str]:
        return [event["event"] for event in self.plan.folder.events()]


def faulty(label: str, when: Path, how: str) -> dict[str, Any]:
    """An environment in which something goes wrong once while a file exists, in the third iteration."""
    kwargs = {"when": str(when), "how": how, "after": 250}
    return {"name": "tests.faulty:faulty", "label": label, "kwargs": kwargs}


def sound(folder: Path, label: str = "sound") -> dict[str, Any]:
    """The same environment when nothing goes wrong."""
    return faulty(label, folder / f"never {label}", "crashes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def done(folder: Path) -> Done:
    """Three environments, of which one crashes once and one is gone when the study begins; two at a time."""
    (folder / "now").touch()
    crashing = faulty("crashing", folder / "now", "crashes")
    licence = folder / "licence"
    licence.touch()
    gone = {"name": "tests.faulty:gone", "label": "gone", "kwargs": {"licence": str(licence)}}
    file = write_study(folder, "done", environments=[sound(folder), crashing, gone], methods=METHODS)
    plan = prepare(file, out=folder / "done")
    licence.unlink()
    grid = do(plan)
    licence.touch()
    return Done(plan, grid)


def test_what_fails_stops_nothing_else(done: Done) -> None:
    states = {name: progress.state for name, progress in done.grid.nodes.items()}
    assert states["gone-aajr-s0"] == "failed"
    assert states["gone-aajr-s0/evaluation"] == "impossible"
    for label in ("sound", "crashing"):
        assert states[f"{label}-aajr-s0"] == "finished"
        assert states[f"{label}-aajr-s0/evaluation"] == "finished"
    failed = done.grid.nodes["gone-aajr-s0"]
    assert "expected a licence, got none" in failed.error
    assert "Traceback" in Path(failed.log).read_text()


def test_a_run_that_is_started_again_has_the_numbers_of_one_that_did_not_fail(done: Done) -> None:
    (crashed,) = [n.node.run.name for n in done.grid.nodes.values() if n.restarts]
    assert crashed.startswith("crashing-")
    assert "the simulator has crashed" in done.plan.folder.log(crashed).read_text()
    (resumed,) = done.plan.folder.run(crashed).events()
    assert (resumed["event"], resumed["iteration"]) == ("resumed", 2)
    assert done.numbers(crashed) == done.numbers(crashed.replace("crashing", "sound"))


def test_the_report_says_what_failed_and_what_was_started_again(done: Done) -> None:
    page = done.plan.folder.report.read_text()
    assert "gone-aajr-s0" in page
    assert "the simulator has crashed" in page


def test_the_report_names_no_folder_above_the_working_directory(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = done.plan
    monkeypatch.chdir(plan.folder.path.parent)
    page = write_page(plan).read_text()
    assert "done/runs/sound-aajr-s0" in page
    assert "done/logs/" in page
    assert str(plan.folder.path) not in page


def test_the_table_has_every_return(done: Done) -> None:
    table = pyarrow.parquet.read_table(done.plan.folder.results).to_pylist()
    rows = [row for row in table if row["epsilon"] is not None]
    assert {row["attack"] for row in table if row["epsilon"] is None} == {"idle"}
    assert {(row["run"], row["attack"], row["epsilon"]) for row in rows} == {
        (f"{label}-aajr-s0", *attack)
        for label in ("sound", "crashing")
        for attack in (("none", 0.0), ("noise", 0.1), ("pgd", 0.1))
    }
    for row in rows:
        found = done.evaluation(row["run"])
        outcomes = {"none": found.clean} | {each.attack.name: each for each in found.attacks}
        assert tuple(row["returns"]) == outcomes[row["attack"]].returns
        assert row["method"] == "aajr"


def test_another_order_one_at_a_time_and_a_stop_on_the_way_give_the_same_numbers(
    done: Done, folder: Path, tmp_path: Path, s3: str
) -> None:
    both = [sound(folder, "crashing"), sound(folder)]
    file = write_study(tmp_path, environments=both, methods=METHODS, storage=s3, max_concurrent=1)
    plan = prepare(file, out=tmp_path / "out")

    def one_is_there() -> bool:
        return any(event["event"] == "finished" for event in plan.folder.events())

    stopped = do(plan, should_stop=one_is_there)
    assert 1 <= stopped.count("finished") < 4
    assert stopped.count("failed") == 0
    other = Done(plan, do(prepare(file, out=tmp_path / "out")))
    assert other.grid.count("finished") == 4
    for name in ("sound-aajr-s0", "crashing-aajr-s0"):
        assert other.numbers(name) == done.numbers(name)
        ours, theirs = (each.evaluation(name) for each in (other, done))
        assert (ours.clean, ours.attacks, ours.worst) == (theirs.clean, theirs.attacks, theirs.worst)

    elsewhere = prepare(file, out=tmp_path / "elsewhere")
    assert do(elsewhere).count("finished") == 4
    assert "started" not in [event["event"] for event in elsewhere.folder.events()]
    assert elsewhere.folder.report.is_file()
    assert elsewhere.folder.identity == other.plan.folder.identity
    assert not list(Path(tempfile.gettempdir()).glob(f"*{elsewhere.folder.identity}*"))
    assert s3.startswith("s3://key:secret@")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if b":secret@" in path.read_bytes()]
    assert "storage: s3://***@bucket" in elsewhere.folder.study_file.read_text()

    changed = {**yaml.safe_load(file.read_text()), "evaluation": {"suite": "suite.yaml", "seed": 1}}
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: evaluation.seed: 0 → 1; .*another storage"):
        prepare(write_study(tmp_path, **changed), out=tmp_path / "a third place")


def test_a_study_whose_driver_is_killed_goes_on_to_the_same_numbers(done: Done, tmp_path: Path) -> None:
    now = tmp_path / "now"
    file = write_study(
        tmp_path,
        environments=[faulty("crashing", now, "hangs")],
        methods=METHODS,
        evaluation={"suite": None},
    )
    words = [*CLI, "study", str(file), "--out", str(tmp_path / "out"), "--log-json"]
    environment = quiet_environment() | {"WARM_COMMANDS": "yes"}
    driver = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        event = json.loads(line)
        if event["event"] == "started" and event["node"] == "crashing-aajr-s0":
            now.touch()
            break
    wait_until(lambda: not now.exists())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    run = RunDirectory(tmp_path / "out" / "runs" / "crashing-aajr-s0")
    assert run_exists(run)
    assert (run.status().state, run.iterations()) == ("running", [2])
    plan = prepare(file, out=tmp_path / "out")
    again = Done(plan, do(plan))
    assert again.grid.count("finished") == 1
    (resumed,) = run.events()
    assert (resumed["event"], resumed["iteration"], resumed["after"]) == ("resumed", 2, "running")
    assert again.numbers("crashing-aajr-s0") == done.numbers("crashing-aajr-s0")


def wait_until(it_is: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not it_is():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_exists_is_not_repeated(done: Done) -> None:
    before = len(done.events())
    do(prepare(done.plan.source.path, out=done.plan.folder.path, only="sound-*"))
    assert done.events()[before:] == ["study", "session", "written"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run", {"env_steps": 300}, r"sound-aajr-s0: .*env_steps: 400 → 300.*change it back"),
        ("methods", [{"name": "none"}], r"the run crashing-aajr-s0 is no longer part of it"),
        ("evaluation", {"suite": "quick"}, r'evaluation.suite: "suite.yaml" → "quick"'),
        ("adversaries", [{"kind": "traitor", "env_steps": 100}], r":\d+: adversaries"),
    ],
)
def test_a_study_that_has_changed_is_refused(
    done: Done, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    whole = yaml.safe_load(done.plan.source.path.read_text())
    with pytest.raises(ValueError, match=rf"tiny\.yaml.*{message}"):
        prepare(write_study(tmp_path, **{**whole, key: value}), out=done.plan.folder.path)


def test_a_study_may_grow(done: Done, tmp_path: Path) -> None:
    whole = yaml.safe_load(done.plan.source.path.read_text())
    grown = prepare(write_study(tmp_path, **{**whole, "seeds": [0, 1]}), out=done.plan.folder.path)
    left = [name for name, node in grown.nodes.items() if not grown.folder.done(node)]
    trained = [name for name in left if grown.nodes[name].kind == "train"]
    assert all(name.endswith("-s1") or name.startswith("gone-") for name in trained)


def test_runs_that_can_never_be_placed_are_refused_with_what_there_is(tmp_path: Path) -> None:
    run = {"resources": {"env_runners": 9, "envs_per_runner": 4}, "env_steps": 400}
    file = write_study(tmp_path, run=run)
    plan = prepare(file, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"tiny\.yaml:\d+: resources: .* has 2 CPU and 0 GPU .*needs 10 CPU"):
        do(plan)
    assert not (tmp_path / "out").exists()


def test_runs_that_are_there_need_no_room(tmp_path: Path) -> None:
    run = {"resources": {"env_runners": 9, "envs_per_runner": 4}, "env_steps": 400}
    plan = prepare(write_study(tmp_path, run=run), out=tmp_path / "out")
    directory = plan.folder.run(plan.runs[0].name)
    directory.create(plan.runs[0].config)
    directory.write_status(Status("finished"))
    with on_cluster(plan):
        pass
