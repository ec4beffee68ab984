"""Train, stop, resume: real Ray, real environment, the commands a person types.

Those that attack and compare such runs are the README's, which test_readme.py runs.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.cli.app import main
from tests.cli.conftest import CLI, quiet_environment
from tests.forked import Forked, joining
from tests.patience import PATIENCE

TINY = (
    *("--env", "simple_spread_v3", "--env-steps", "2000", "--checkpoint-every", "2", "--hidden", "16"),
    *("--envs-per-runner", "4", "--set", "ppo.train_batch_size=200", "--set", "ppo.minibatch_size=150"),
)
AAJR = (*TINY, "--method", "aajr", "--inner-steps", "2", "--epsilon", "0.2", "--ramp", "none")

SHORT = ("--env-steps", "200")


class Runs:
    """A folder in which runs are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.robust = "runs/simple_spread_v3-aajr-s0"
        self.plain = "with space/plain"
        self.stopped = "runs/stopped"

    def cli(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        words = ["-m", "marl_aajr", *arguments]
        done = Forked(words, cwd=self.folder, COLUMNS="100", NO_COLOR="1", **extra).finish()
        assert "Traceback" not in done.stderr
        return done

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """What does not depend on the clock."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        kept = [json.loads(line) for line in lines]
        for line in kept:
            for name in ("seconds", "env_steps_per_second"):
                del line[name]
            for module in line["modules"].values():
                module.pop("aajr/seconds", None)
        return kept

    def status(self, run: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / run / "status.json").read_text()))


@pytest.fixture(scope="module")
def runs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A plain run and a longer, robust one, on a Ray that is up; a study starts its own in tests/study."""
    made = Runs(tmp_path_factory.mktemp("end to end"))
    commands = (("train", *TINY, *SHORT, "--out", made.plain), ("train", *AAJR))
    plain, robust = (made.cli(*command, **joining()) for command in commands)
    assert plain.returncode == 0, plain.stderr
    assert plain.stderr.splitlines()[-1] == f"  marl-aajr evaluate '{made.plain}'"
    assert robust.returncode == 0, robust.stderr
    return made


@pytest.fixture(scope="module")
def stopped(runs: Runs) -> str:
    """What the command said whose run Ctrl-C stopped after its first checkpoint."""
    words = [*CLI, "train", *AAJR, "--out", runs.stopped]
    process = subprocess.Popen(
        words, cwd=runs.folder, env=quiet_environment() | joining(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("iteration 2 "):
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 130, said
    return "".join(said)


def test_progress_goes_to_stderr_a_line_for_each_iteration(runs: Runs, stopped: str) -> None:
    lines = [line for line in stopped.splitlines() if line.startswith("iteration ")]
    sides, run, *_ = stopped.splitlines()
    assert sides == "simple_spread_v3: one team, team (agent_0, agent_1, agent_2)"
    assert run == "simple_spread_v3, method aajr, seed 0, 2,000 env steps, into runs/stopped"
    assert [line.split()[1] for line in lines] == [str(1 + i) for i in range(len(lines))]
    assert 2 <= len(lines) < 10
    for word in ("200/2,000 env steps (10%)", "return -", "steps/s ", "penalty ", "left "):
        assert word in lines[0]


def test_options_reach_the_run(runs: Runs) -> None:
    from marl_aajr.training.run_directory import RunDirectory

    config = RunDirectory(runs.folder / runs.robust).config()
    assert (config.env.name, config.env_steps, config.model.hidden) == ("simple_spread_v3", 2000, (16,))
    assert config.method.settings["steps"] == 2
    assert config.method.settings["epsilon"] == 0.2
    assert config.method.ramp is None
    assert config.ppo.minibatch_size == 150
    assert RunDirectory(runs.folder / runs.plain).config().method.name == "none"


def test_ctrl_c_finishes_the_iteration_and_says_exactly_how_to_go_on(runs: Runs, stopped: str) -> None:
    assert "Finishing this iteration" in stopped
    assert stopped.endswith(f"  marl-aajr train --resume --out {runs.stopped}\n")


def test_an_interrupted_run_goes_on_to_the_numbers_of_one_that_never_stopped(
    runs: Runs, stopped: str
) -> None:
    assert runs.status(runs.stopped)["state"] == "interrupted"
    command = stopped.splitlines()[-1].split()[1:]
    resumed = runs.cli(*command, **joining())
    assert resumed.returncode == 0, resumed.stderr
    assert runs.status(runs.stopped)["state"] == "finished"
    assert runs.metrics(runs.stopped) == runs.metrics(runs.robust)


SMALL = ("--set", "ppo.train_batch_size=200", "--set", "ppo.minibatch_size=100")


@dataclass
class Ended:
    """What the demo knows of a command that has ended."""

    code: int

    def poll(self) -> int:
        return self.code


def test_the_demo_goes_from_nothing_to_a_report(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its commands, one after the other in this process, in smaller batches.

    With processes, and how it goes on when it was stopped, it is tested by test_demo_script.py.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    demo = importlib.import_module("demo")

    def run(jobs: Any, name: str, command: list[str], log: Path) -> None:
        words = command[3:]
        with pytest.raises(SystemExit) as over:
            main([*words, *SMALL] if words[0] == "train" else words)
        jobs.running.append(demo.Job(name, Ended(int(over.value.code or 0)), log))

    monkeypatch.setattr(demo.Jobs, "start", run)
    monkeypatch.setattr("sys.argv", ["demo", str(tmp_path / "demo"), "--env-steps", "1", "--episodes", "2"])
    for name, value in {"MARL_AAJR_PYTHON": sys.executable, "WARM_COMMANDS": "yes"}.items():
        monkeypatch.setenv(name, value)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert demo.main() == 0
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "worst at ε 0.2" in capfd.readouterr().out
