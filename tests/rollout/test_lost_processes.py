"""Errors and ends of the processes that play copies, and what cannot be played by them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.game_shares import Processes, in_processes
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.patience import PATIENCE
from tests.rollout.test_processes import ENDINGS, PLAYED, beginning, others, played, same
from tests.rollout.toy_games import Scripted

ROOT = Path(__file__).parents[2]
HERE = "tests.rollout.test_lost_processes"


class Breaks(Scripted):
    """Raises, or ends its process, in the fourth step of the processes that are not its parent's."""

    def __init__(self, parent: int, how: str) -> None:
        super().__init__(dict.fromkeys("ab", (6, "truncated")), agents="ab")
        self.parent, self.how = parent, how

    def step(self, actions: dict[str, Any]) -> Any:
        if os.getpid() != self.parent and self.t == 3:
            if self.how == "exits":
                os._exit(7)
            raise OddError("the simulator", "has crashed")
        return super().step(actions)


class OddError(Exception):
    """Pickles, but cannot be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_in_another_process_is_raised_here_with_its_traceback() -> None:
    spec = resolve(f"{HERE}:Breaks", {"parent": os.getpid(), "how": "raises"})
    with closing(PettingZooBatch(spec, 4, processes=2)) as batch:
        for _ in range(2):  # the processes live, and begin again
            with pytest.raises(EnvironmentFault) as raised:
                list(beginning(batch, steps=4))
            assert "Breaks, copy 2, step 4: raised OddError: the simulator has crashed" in str(raised.value)
            (note,) = raised.value.__notes__
            assert f"In process {others(batch)[0].pid}" in note
            assert 'raise OddError("the simulator", "has crashed")' in note


LOST = {
    "exits": (resolve(f"{HERE}:Breaks", {"parent": os.getpid(), "how": "exits"}), "ended with exit code 7"),
    "killed": (PLAYED["who come and go"], r"was killed by SIGKILL: is there too little memory\?"),
}


@pytest.mark.parametrize("how", LOST)
def test_a_lost_process_is_an_error_and_reset_begins_with_another(how: str) -> None:
    spec, says = LOST[how]
    with closing(PettingZooBatch(spec, 4, processes=2)) as batch:
        list(beginning(batch, steps=2))
        (process,) = others(batch)
        if how == "killed":
            os.kill(process.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match=rf"copies 2 to 3: process {process.pid}, .* {says}"):
                list(played(batch, steps=3, first=2))
        alone = PettingZooBatch(spec, 4)
        assert same(beginning(alone, steps=2), beginning(batch, steps=2))


def test_environments_that_cannot_be_sent_or_built_elsewhere_are_refused_in_words() -> None:
    lock = threading.Lock()

    def locked() -> Scripted:
        assert lock is not None
        return Scripted(ENDINGS)

    gymnasium.register("OnlyHere-v0", entry_point=gymnasium.make("Pendulum-v1").unwrapped.__class__)
    for spec, says in (
        (resolve(locked), r"sent to other processes, got .*locked \(TypeError: .*lock.*plain arguments"),
        (
            resolve("OnlyHere-v0"),
            r"other processes can build, got OnlyHere-v0 .*the module that registers it",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            PettingZooBatch(spec, 16, processes=2)
        with in_processes(Processes(2, optional=True)), closing(PettingZooBatch(spec, 16)) as alone:
            assert others(alone) == []
            alone.reset(seed=0)
    with pytest.raises(ValueError, match="at least 1 process, got 0"):
        PettingZooBatch(PLAYED["particles"], 2, processes=0)


def test_optional_processes_have_8_copies_each() -> None:
    assert [len(Processes(4, optional=True).bounds(n)) - 1 for n in (1, 15, 16, 31, 160)] == [1, 1, 2, 3, 4]
    assert Processes(4).bounds(3) == [0, 1, 2, 3]
    assert Processes(2).bounds(5) == [0, 2, 5]


def test_processes_are_used_again_and_nothing_is_left_open() -> None:
    def build() -> int:
        with closing(PettingZooBatch(PLAYED["who come and go"], 2, processes=2)) as batch:
            batch.reset(seed=0)
            return others(batch)[0].pid

    first, files = build(), len(os.listdir("/proc/self/fd"))
    assert [build() for _ in range(3)] == [first] * 3
    batch = PettingZooBatch(PLAYED["who come and go"], 2, processes=2)
    del batch
    assert len(os.listdir("/proc/self/fd")) == files
    assert build() == first


def test_a_process_that_nobody_needs_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marl_aajr.rollout.game_process._idle", {})
    monkeypatch.setattr("marl_aajr.rollout.game_process._IDLE_SECONDS", 0.1)
    with closing(PettingZooBatch(PLAYED["who come and go"], 2, processes=2)) as batch:
        (process,) = others(batch)
        time.sleep(0.2)
        batch.reset(seed=0)
    assert ended(process.pid)
    with closing(PettingZooBatch(PLAYED["who come and go"], 2, processes=2)) as batch:
        assert others(batch) != [process]


def ended(pid: int) -> bool:
    """Whether a process ends: it has no memory then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if not Path(f"/proc/{pid}/maps").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


SCRIPT = """
import signal, time
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.rollout.toy_games import Scripted

class Slow(Scripted):
    def step(self, actions):
        time.sleep(60 if self.t else 0)
        return super().step(actions)

def make():
    return Slow(dict.fromkeys("ab", (9, "truncated")), agents="ab")

batch = PettingZooBatch(resolve(make), 2, processes=2)
batch.reset(seed=0)
print(*(process.pid for process in batch._shares._others), flush=True)
for _ in range(2):
    batch.step({agent: torch.zeros(2, dtype=torch.long) for agent in "ab"})
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_script_that_is_stopped(end: signal.Signals, tmp_path: Path) -> None:
    """Its factory is its own, and nothing guards its top level."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stdout is not None
        child = int(script.stdout.readline())
        time.sleep(0.2)
        if end == signal.SIGINT:
            os.killpg(script.pid, end)
        else:
            script.kill()
        _, said = script.communicate(timeout=PATIENCE)
    assert said.count("Traceback") == (end == signal.SIGINT), said
    assert ended(child)
