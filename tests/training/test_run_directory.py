from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from marl_aajr.training.files import append_line, new_folder, write_json
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import Status, Versions, parse
from tests.training.runs import tiny


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(tiny())
    directory.unlock()
    return directory


def test_a_new_run_has_its_configuration_versions_and_status(run: RunDirectory) -> None:
    assert run.config() == tiny()
    assert run.status() == Status("running", 0, 0, None)
    versions = json.loads(run.versions_file.read_text())
    assert versions["seed"] == 3
    assert {"torch", "ray", "marl-aajr"} <= set(versions["packages"])
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o755
    assert stat.S_IMODE(run.config_file.stat().st_mode) == 0o644


def test_packages_that_are_not_those_of_the_beginning_are_named(run: RunDirectory) -> None:
    assert parse(Versions, run.versions_file).changed() == {}
    versions = json.loads(run.versions_file.read_text())
    now = versions["packages"]["torch"]
    versions["packages"]["torch"] = "1.0"
    write_json(run.versions_file, versions)
    assert parse(Versions, run.versions_file).changed() == {"torch": now}


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create(tiny())
    assert directory.is_run


def test_a_run_is_not_overwritten_unless_asked(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match=r"which holds a run \(running\); resume it, overwrite it"):
        run.create(tiny())
    append_line(run.metrics_file, {"iteration": 1})
    run.create(tiny(seed=4), overwrite=True)
    assert run.config().seed == 4
    assert run.metrics() == []


@pytest.mark.parametrize("files", [["thesis.tex"], ["config.yaml"], ["config.yaml", "status.json"]])
def test_what_is_not_a_run_is_never_deleted(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match="expected"):
        RunDirectory(tmp_path).create(tiny(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert all(path.read_text() == "precious" for path in tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="exists and is not a run"):
        RunDirectory(tmp_path / "run").create(tiny(), overwrite=True)


def test_one_process_at_a_time(run: RunDirectory) -> None:
    run.lock()
    other = RunDirectory(run.path)
    with pytest.raises(ValueError, match="another process is writing"):
        other.lock()
    with pytest.raises(ValueError, match="another process is writing"):
        other.create(tiny(), overwrite=True)
    run.unlock()
    other.lock()


def test_a_process_that_is_killed_gives_its_run_back(run: RunDirectory) -> None:
    words = "import sys, time; from marl_aajr.training.run_directory import RunDirectory as Run\n"
    words += "run = Run(sys.argv[1]); run.lock(); print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", words, run.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="another process is writing; wait for it or stop it"):
            run.lock()
        process.kill()
    run.lock()


def test_a_line_cut_short_by_a_crash_is_left_out(run: RunDirectory) -> None:
    for i in (1, 2, 3):
        append_line(run.metrics_file, {"iteration": i})
    with run.metrics_file.open("a") as file:
        file.write('{"iterat')
    assert [line["iteration"] for line in run.metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    assert run.metrics_file.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'


def test_what_follows_a_line_cut_short_takes_its_place(run: RunDirectory) -> None:
    """As on a full disk, which may cut a letter in two."""
    run.append_event("resumed", iteration=1)
    with run.events_file.open("ab") as file:
        file.write('{"event": "restarted", "error": "ε'.encode()[:-1])
    assert [event["iteration"] for event in run.events()] == [1]
    run.append_event("resumed", iteration=2)
    assert [event["iteration"] for event in run.events()] == [1, 2]


def test_a_broken_line_elsewhere_is_told(run: RunDirectory) -> None:
    run.metrics_file.write_text('{"iterat\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        run.metrics()


def test_metrics_hold_no_nan(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(run.metrics_file, {"iteration": float("nan")})
    assert not run.metrics()


def test_the_newest_two_checkpoints_are_kept_and_leftovers_removed(run: RunDirectory) -> None:
    for i in (2, 4, 10):
        run.checkpoint(i).mkdir(parents=True)
    (run.checkpoints / ".000012.x1").mkdir()
    (run.checkpoints / "notes").mkdir()
    assert run.iterations() == [2, 4, 10]
    run.prune_checkpoints()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000004", "000010", "notes"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a" / "b") as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("inf")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_reading_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run"):
        RunDirectory(tmp_path / "nowhere").config()
