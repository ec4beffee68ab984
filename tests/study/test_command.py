"""`marl-aajr study` before anything is started, and what it expects a study to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from marl_aajr.cli.app import main
from marl_aajr.study.driver import prepare
from marl_aajr.study.progress import forecast
from marl_aajr.training.files import append_line
from tests.study.files import SUITE, write_study

METHODS = [{"name": "none"}, {"name": "aajr"}]


def command(*words: object) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(["study", *map(str, words)])
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("ray_session")
def test_a_dry_run_shows_what_would_be_done_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"env_steps": 150_000, "resources": {"env_runners": 1}}
    file = write_study(tmp_path, methods=METHODS, run=run)
    assert command(file, "--out", tmp_path / "out", "--dry-run", "--max-concurrent", "1") == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "simple_spread_v3-none-s0 " in line]
    assert line.replace("│", " ").split() == ["simple_spread_v3-none-s0", "150,000", "2", "0:10"]
    words = " ".join(out.split())
    assert "2 runs, 4 steps of work, 4 of them still to do: about 0:40 on 2 CPUs" in words
    assert "assuming 15,000 env steps/s for plain PPO" in words
    assert not (tmp_path / "out").exists()


def test_errors_name_the_line_and_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_study(tmp_path, seeds=[])
    assert command(file) == 2
    assert f"error: {file}:" in capsys.readouterr().err


def test_resume_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_study(tmp_path)
    assert command(file, "--resume", "--out", tmp_path / "out") == 2
    assert "expected a study to resume in" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path, address="localhost:1")
    assert command(file, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "tiny.yaml:" in error
    assert "address: no Ray cluster answers at localhost:1" in error
    assert not (tmp_path / "out").exists()


def test_what_has_been_measured_is_what_is_expected_of_the_rest(tmp_path: Path) -> None:
    plan = prepare(write_study(tmp_path, methods=METHODS, seeds=[0, 1]), out=tmp_path / "out")
    assumed = forecast(plan.nodes, plan.folder)
    assert assumed.assumed == assumed.left == 8
    with plan.folder.begun(plan.study):
        for node, seconds in (
            ("simple_spread_v3-none-s0", 40.0),
            ("simple_spread_v3-none-s1/evaluation", 7.0),
        ):
            append_line(plan.folder.events_file, {"event": "finished", "node": node, "seconds": seconds})
    measured = forecast(plan.nodes, plan.folder)
    assert measured.assumed == 4
    assert measured.seconds["simple_spread_v3-none-s1"] == 40.0
    assert measured.seconds["simple_spread_v3-none-s0/evaluation"] == 7.0
    assert measured.seconds["simple_spread_v3-aajr-s0"] == assumed.seconds["simple_spread_v3-aajr-s0"]


def test_threats_without_a_size_are_priced_by_how_often_they_are_played(tmp_path: Path) -> None:
    """Faults by their draws, dynamics by their values: of the suite's rows there are as many more."""
    known: dict[str, Any] = {"attacks": ["noise", "pgd"], "epsilons": [0.1, 0.2]}
    beside = {"attacks": ["noise", "pgd", {"attack": "dropout", "draws": 3}], "vary": ["kwargs.mass=1,2"]}
    priced = []
    for name, change in (("plain", {}), ("threats", beside)):
        (tmp_path / name).mkdir()
        file = write_study(tmp_path / name)
        (tmp_path / name / "suite.yaml").write_text(yaml.safe_dump({**SUITE, **known, **change}))
        plan = prepare(file, out=tmp_path / name / "out")
        priced.append(forecast(plan.nodes, plan.folder).seconds["simple_spread_v3-none-s0/evaluation"])
    assert priced[1] == pytest.approx(priced[0] * (4 + 3 + 2) / 4)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"expected a new folder, got .*out, which is not a study"):
        prepare(write_study(tmp_path), out=tmp_path / "out")


def test_a_study_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    plan = prepare(write_study(tmp_path), out=tmp_path / "out")
    other = prepare(write_study(tmp_path), out=tmp_path / "out")
    refused = pytest.raises(ValueError, match=r"expected a study that nobody is running, got .*out")
    with plan.folder.begun(plan.study), refused, other.folder.begun(other.study):
        pass
    with other.folder.begun(other.study):
        pass
