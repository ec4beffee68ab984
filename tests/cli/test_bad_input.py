"""Everything a person can get wrong: one line with the cure, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from marl_aajr.cli.app import main

TRAIN = ("train", "--env", "simple_spread_v3")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line; its one line of complaint."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("train", "--env", "simple_spred_v3"),
            ["simple_spred_v3", "did you mean", "simple_spread_v3", "list envs"],
        ),
        (("train", "--env", "no_such_package.env:make"), ["no_such_package"]),
        (("train",), ["--env", "--config", "list envs"]),
        ((*TRAIN, "--method", "ajar"), ["'ajar'", "none, aajr"]),
        ((*TRAIN, "--method", "aajr", "--epsilon", "0"), ["epsilon", "got 0"]),
        ((*TRAIN, "--method", "aajr", "--epsilon", "-0.1"), ["epsilon", "got -0.1"]),
        ((*TRAIN, "--method", "aajr", "--coefficient", "-1"), ["coefficient", "got -1"]),
        ((*TRAIN, "--method", "aajr", "--inner-steps", "0"), ["steps", "got 0"]),
        ((*TRAIN, "--method", "aajr", "--objective", "harm"), ["'harm'", "kl"]),
        ((*TRAIN, "--method", "aajr", "--output-map", "logit"), ["'logit'", "logits"]),
        ((*TRAIN, "--epsilon", "0.1"), ["method none", "epsilon"]),
        ((*TRAIN, "--env-steps", "many"), ["env_steps", "integer", "'many'"]),
        ((*TRAIN, "--hidden", "64,x"), ["model.hidden", "integer"]),
        ((*TRAIN, "--policies", "both"), ["policies", "shared", "independent"]),
        ((*TRAIN, "--set", "ppo.learning_rate=1"), ["ppo.learning_rate", "lr"]),
        ((*TRAIN, "--set", "ppo.lr"), ["KEY=VALUE"]),
        ((*TRAIN, "--set", "env.kwargs.agents=5"), ["agents", "N"]),
        ((*TRAIN, "--config", "none.yaml"), ["none.yaml"]),
        ((*TRAIN, "--resume"), ["runs/simple_spread_v3-none-s0", "train"]),
        ((*TRAIN, "--resume", "--overwrite"), ["choose one"]),
        ((*TRAIN, "--steps", "5"), ["No such option", "--steps"]),
        ((*TRAIN, "--address", "127.0.0.1:1"), ["no Ray cluster answers at 127.0.0.1:1"]),
        (("evaluate", "runs/none"), ["runs/none", "train"]),
        (("evaluate", "runs/none", "--out", "."), ["a file that can be written, got ."]),
        (
            ("evaluate", "runs/none", "--attack", "pdg"),
            ["attacks.0: expected", "did you mean pgd?"],
        ),
        (("evaluate", "runs/none", "--attack", "delay", "--epsilon", "0.1"), ["delay, which have no size"]),
        (("certify", "runs/none", "--alpha", "0.01"), ["expected smoothing with alpha"]),
        (("compare", "runs/none", "--out", "page.html"), ["runs/none"]),
        (("compare",), ["RUN"]),
        (("list", "envz"), ["envs, methods, attacks", "envz"]),
        (("tran",), ["tran", "train"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_refused_in_one_line_and_nothing_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], says: list[str]
) -> None:
    line = refused(capsys, *arguments)
    assert [word for word in says if word not in line] == []
    assert list(tmp_path.rglob("*")) == []


def test_integer_observations_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(INTEGER_ENVIRONMENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = refused(capsys, "train", "--env", "counting:make", "--method", "aajr")
    assert "int" in line
    assert "agent_0" in line
    assert not (tmp_path / "runs").exists()
    sys.modules.pop("counting", None)


INTEGER_ENVIRONMENT = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

class Counting(ParallelEnv):
    metadata = {"name": "counting_v0"}
    possible_agents = ["agent_0", "agent_1"]
    agents = []

    def observation_space(self, agent):
        return Box(0, 9, (2,), np.int64)

    def action_space(self, agent):
        return Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return {a: np.zeros(2, np.int64) for a in self.agents}, {a: {} for a in self.agents}

    def step(self, actions):
        everyone = list(self.agents)
        self.agents = []
        return (
            {a: np.zeros(2, np.int64) for a in everyone},
            dict.fromkeys(everyone, 0.0),
            dict.fromkeys(everyone, True),
            dict.fromkeys(everyone, False),
            {a: {} for a in everyone},
        )

def make():
    return Counting()
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("env: {name: simple_spread_v3}\nsede: 3\n", ["study.yaml", "sede", "did you mean seed?"]),
        ("env: [1, 2\n", ["study.yaml", "YAML"]),
        ("- a\n", ["study.yaml", "mapping"]),
        (
            "env: {name: simple_spread_v3}\nmethod: {name: aajr, epsilon: -1}\n",
            ["study.yaml", "epsilon", "-1"],
        ),
    ],
)
def test_a_bad_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: list[str]
) -> None:
    (tmp_path / "study.yaml").write_text(text)
    line = refused(capsys, "train", "--config", "study.yaml")
    assert [word for word in says if word not in line] == []
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_something_else_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    thesis = tmp_path / "mine" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    assert "not a run" in refused(capsys, *TRAIN, "--out", "mine", "--overwrite")
    assert thesis.read_text() == "mine"


def test_several_problems_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*TRAIN, "--seed", "-1", "--env-steps", "0"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["error", " seed"], ["error", " env_steps"]]


def unfinished(run: Path) -> Path:
    """As far as a run has come when its first checkpoint is not yet written."""
    from marl_aajr.training.config import make_config
    from marl_aajr.training.run_directory import RunDirectory

    directory = RunDirectory(run)
    directory.create(make_config({"env": {"name": "simple_spread_v3"}}))
    directory.unlock()
    return run


def test_an_unfinished_run_is_neither_evaluated_nor_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = unfinished(tmp_path / "run")
    before = sorted(run.rglob("*"))
    assert "running" in refused(capsys, "evaluate", str(run))
    assert "running" in refused(capsys, "compare", str(run), "--out", "page.html")
    assert sorted(run.rglob("*")) == before
    assert not (tmp_path / "page.html").exists()


def test_a_run_is_not_overwritten_by_accident(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    line = refused(capsys, *TRAIN, "--out", str(run))
    assert "resume" in line
    assert "overwrite" in line


def test_a_resumed_run_keeps_its_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    line = refused(capsys, "train", "--resume", "--out", str(run), "--seed", "9")
    assert "seed: 0 → 9" in line


def test_an_adversary_is_not_resumed_as_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    request = run.with_name("run.search") / "request.json"
    request.parent.mkdir()
    request.write_text("{}")
    line = refused(capsys, "train", "--resume", "--out", str(run))
    assert line.endswith(f"go on with: marl-aajr adversary train --resume --out {run}\n")


def test_a_corrupt_checkpoint_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    (run / "checkpoints" / "000010").mkdir(parents=True)
    assert "000010" in refused(capsys, "train", "--resume", "--out", str(run))
    assert json.loads((run / "status.json").read_text())["state"] == "running"
