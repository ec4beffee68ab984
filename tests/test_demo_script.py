"""How scripts/demo.py handles folders, Ctrl-C and failures, with a stand-in for the package's command.

That the demo works with the package itself is shown in tests/cli/test_end_to_end.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"

STAND_IN = """#!/bin/sh
"exec" "{python}" "-IS" "$0" "$@"
import json, os, pathlib, signal, sys, time
command, words = sys.argv[3], sys.argv[4:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join([command, *words]) + "\\n")
if command == "compare":
    pathlib.Path(words[words.index("--out") + 1]).write_text("page")
elif command == "evaluate":
    place = pathlib.Path(words[0]) / "evaluations"
    place.mkdir()
    (place / "one.json").write_text("{{}}")
else:
    run = pathlib.Path(words[words.index("--out") + 1])
    run.mkdir(exist_ok=True)
    def end(state, code):
        (run / "status.json").write_text(json.dumps(dict(state=state)))
        sys.exit(code)
    signal.signal(signal.SIGINT, lambda *_: end("interrupted", 130))
    (run / "status.json").write_text(json.dumps(dict(state="running")))
    if run.name == os.environ.get("FAILS"):
        print("error: out of luck")
        while not (run.parent / "none" / "status.json").exists():
            time.sleep(0.01)
        sys.exit(2)
    time.sleep(float(os.environ.get("SLOW", 0)))
    (run / "metrics.jsonl").write_text(json.dumps(dict(env_steps=100, return_mean=-7.0)) + "\\n")
    end("finished", 0)
"""


class Demo:
    """The script in a folder of its own, and what it called."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "demo"
        self.calls_file = folder / "calls"
        self.python = folder / "python"
        self.python.write_text(STAND_IN.format(python=sys.executable))
        self.python.chmod(0o755)

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        self.calls_file.unlink(missing_ok=True)
        words = [sys.executable, str(DEMO), str(self.out), "--env-steps", "100", *arguments]
        env = os.environ | {"MARL_AAJR_PYTHON": str(self.python), "CALLS": str(self.calls_file)} | extra
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, **extra: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    @property
    def calls(self) -> list[str]:
        """The commands, without the words that say how long and where."""
        kept = [
            line.replace(str(self.out), "DEMO").split(" --attack")[0]
            for line in self.calls_file.read_text().splitlines()
        ]
        return sorted(line.split(" --env-steps")[0] for line in kept)


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


TRAIN = "train --env marl_aajr.envs.simple_spread_v3 --method"
FRESH = [
    "compare DEMO/none DEMO/adversarial_training DEMO/aajr --out DEMO/report.html",
    "evaluate DEMO/aajr",
    "evaluate DEMO/adversarial_training",
    "evaluate DEMO/none",
    f"{TRAIN} aajr --coefficient 3e-5 --objective margin --set rollouts.epsilon=0.1",
    f"{TRAIN} adversarial_training --epsilon 0.1",
    f"{TRAIN} none",
]


def test_all_are_trained_attacked_and_compared(demo: Demo) -> None:
    code, out, err = demo.run()
    assert (code, err) == (0, "")
    assert demo.calls == FRESH
    assert "none 100% return -7.0  adversarial_training 100% return -7.0  aajr 100% return -7.0" in out
    assert (demo.out / "report.html").read_text() == "page"


def test_a_finished_demo_is_kept_unless_told_otherwise(demo: Demo) -> None:
    demo.run()
    assert f"{demo.out}-2" in demo.run()[1]
    assert f"{demo.out}-3" in demo.run()[1]
    assert demo.run("--overwrite")[0] == 0
    assert demo.calls == FRESH
    assert not Path(f"{demo.out}-4").exists()


def test_ctrl_c_reaches_all_once_and_the_same_command_goes_on(demo: Demo) -> None:
    process = demo.start(SLOW="30")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not all(
        (demo.out / m / "status.json").exists() for m in ("none", "adversarial_training", "aajr")
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "Stopped and saved; the same command goes on from here.\n"
    assert json.loads((demo.out / "aajr" / "status.json").read_text())["state"] == "interrupted"

    assert f"{demo.out}-2" in demo.run("--seed", "1")[1]  # another seed is another demo

    code, out, _ = demo.run()
    assert code == 0
    assert "Going on with the unfinished demo" in out
    assert [call for call in demo.calls if call.startswith("train")] == [
        "train --resume --out DEMO/aajr",
        "train --resume --out DEMO/adversarial_training",
        "train --resume --out DEMO/none",
    ]


def test_a_failure_shows_the_end_of_its_log_and_stops_the_others(demo: Demo) -> None:
    code, _, err = demo.run(FAILS="aajr", SLOW="30")
    assert code == 1
    assert "error: out of luck" in err
    assert f"all of it in {demo.out}/aajr.log" in err
    assert json.loads((demo.out / "none" / "status.json").read_text())["state"] == "interrupted"
    assert not any(call.startswith(("evaluate", "compare")) for call in demo.calls)

    assert demo.run()[0] == 0
    assert "train --resume --out DEMO/none" in demo.calls


def test_a_folder_that_holds_no_demo_is_left_alone(demo: Demo) -> None:
    demo.out.mkdir()
    (demo.out / "thesis.tex").write_text("mine")
    code, _, err = demo.run("--overwrite")
    assert code == 2
    assert err == f"error: {demo.out} exists and holds no demo; name another folder\n"
    assert [path.name for path in demo.out.iterdir()] == ["thesis.tex"]
    assert not demo.calls_file.exists()


@pytest.mark.parametrize("words", [("--env-steps", "0"), ("--episodes", "many"), ("--sede", "1")])
def test_a_wrong_option_is_refused_before_anything_is_installed(demo: Demo, words: tuple[str, ...]) -> None:
    code, _, err = demo.run(*words)
    assert code == 2
    assert "error: " in err
    assert not demo.out.exists()
