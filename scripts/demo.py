"""Trains a plain team and two robust ones, attacks all, and writes one page that says which one survives.

It needs nothing but Python: the package lives in the environment that scripts/setup-venv makes, and all goes
through its command line, so that every step can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENV = "marl_aajr.envs.simple_spread_v3"  # equal to mpe2's step for step, and batched
METHODS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "adversarial_training": ("--epsilon", "0.1"),
    "aajr": ("--coefficient", "3e-5", "--objective", "margin", "--set", "rollouts.epsilon=0.1"),
}
"""AAJR stands beside adversarial training: its agents act under the same attack. See experiments/minimax."""
ATTACKS = ("noise", "pgd", "pgd-margin")
EPSILONS = ("0.1", "0.2")
INTERRUPTED = 130
MARK = "demo.json"


class Stop(Exception):  # noqa: N818 - an end, not always an error
    """Ends the demo with an exit code; the message, if any, is for the person."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Job:
    """One command of ours that runs beside others."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Jobs:
    """Commands that run side by side; Ctrl-C reaches them through here and nowhere else."""

    running: list[Job] = field(default_factory=list)
    interrupted: bool = False

    def start(self, name: str, command: list[str], log: Path) -> None:
        """Start a command in a session of its own, where the terminal's Ctrl-C does not reach it twice."""
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.running.append(Job(name, process, log))

    def interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """The demo's own Ctrl-C."""
        self.interrupted = True
        self.pass_on()

    def wait(self, show: Display) -> None:
        """Wait for all, showing progress; a failure stops the others."""
        stopped = False
        while any(job.process.poll() is None for job in self.running):
            if self.failed and not stopped and not self.interrupted:
                stopped = True
                self.pass_on()
            show()
            time.sleep(0.3)
        show.end()
        failed = self.failed
        self.running.clear()
        if failed:
            last = failed.log.read_text(errors="replace").splitlines()[-5:]
            error = f"error: {failed.name} failed as shown; all of it in {failed.log}"
            raise Stop(1, "\n".join([*last, error]))
        if self.interrupted:
            raise Stop(INTERRUPTED, "Stopped and saved; the same command goes on from here.")

    @property
    def failed(self) -> Job | None:
        """The first that ended neither well nor by Ctrl-C."""
        fine = (None, 0, INTERRUPTED, -signal.SIGINT)
        return next((job for job in self.running if job.process.poll() not in fine), None)

    def pass_on(self) -> None:
        """Ctrl-C to each: it saves and ends; the second time it ends at once."""
        for job in self.running:
            if job.process.poll() is None:
                job.process.send_signal(signal.SIGINT)


class Display:
    """Where the jobs are, in one line: rewritten on a terminal, now and then elsewhere."""

    def __init__(self, words: str, runs: Mapping[str, Path], env_steps: int) -> None:
        self._words, self._runs, self._env_steps = words, runs, env_steps
        self._terminal = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{self._line(now)[:width]:<{width}}", end="", flush=True)
        elif now - self._shown >= 15:
            self._shown = now
            print(self._line(now), flush=True)

    def end(self) -> None:
        """Leave the last line standing."""
        print(("\r" if self._terminal else "") + self._line(time.monotonic()), flush=True)

    def _line(self, now: float) -> str:
        parts = [f"{self._words}, {now - self._started:.0f} s"]
        for name, run in self._runs.items():
            latest = last_metrics(run)
            share = min(latest.get("env_steps", 0) / self._env_steps, 1)
            mean = latest.get("return_mean")
            parts.append(f"{name} {share:.0%}" + (f" return {mean:.1f}" if mean is not None else ""))
        return "  ".join(parts)


def last_metrics(run: Path) -> dict[str, Any]:
    """The last complete line of a run's metrics; empty before the first."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def choose_folder(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Where this demo goes: a new folder, or that of an unfinished demo with the same settings.

    Raises:
        Stop: the folder holds something that is not a demo.
    """
    number, folder = 1, out
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = read_json(folder / MARK)
        if not found:
            raise Stop(2, f"error: {folder} exists and holds no demo; name another folder")
        if overwrite:
            shutil.rmtree(folder)
        elif not found.get("finished") and found.get("settings") == dict(settings):
            print(f"Going on with the unfinished demo in {folder}")
            return folder
        else:
            number += 1
            folder = out.with_name(f"{out.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train_command(cli: list[str], run: Path, method: str, options: argparse.Namespace) -> list[str] | None:
    """What is left to do for one run: None, resume, or start."""
    state = read_json(run / "status.json").get("state")
    if state == "finished":
        return None
    if state is not None:
        return [*cli, "train", "--resume", "--out", str(run)]
    words = ["--env", ENV, "--method", method, *METHODS[method], "--env-steps", str(options.env_steps)]
    return [*cli, "train", *words, "--seed", str(options.seed), "--out", str(run)]


def evaluate_command(cli: list[str], run: Path, options: argparse.Namespace) -> list[str] | None:
    """The evaluation of one run, unless it is there."""
    if any((run / "evaluations").glob("*.json")):
        return None
    attacks = [word for attack in ATTACKS for word in ("--attack", attack)]
    sizes = [word for epsilon in EPSILONS for word in ("--epsilon", epsilon)]
    episodes = ["--episodes", str(options.episodes), "--selection-episodes", str(options.episodes // 2 + 1)]
    return [*cli, "evaluate", str(run), *attacks, *sizes, *episodes]


def together(
    jobs: Jobs, commands: Mapping[str, list[str] | None], display: Display, logs: Mapping[str, Path]
) -> None:
    """Run what is left of the commands side by side."""
    for name, command in commands.items():
        if command is not None and not jobs.interrupted:
            jobs.start(name, command, logs[name])
    jobs.wait(display)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""

    def count(text: str) -> int:
        if not text.isdigit() or not int(text):
            raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Sets everything up, trains plain PPO, adversarial training and AAJR with it on "
        "simple_spread, attacks all three teams and writes one page that says which one survives. A demo "
        "that was interrupted goes on where it was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "runs/demo", help="folder for everything")
    parser.add_argument("--env-steps", type=count, default=300_000, help="environment steps of each training")
    parser.add_argument("--episodes", type=count, default=100, help="episodes without and under each attack")
    parser.add_argument("--seed", type=int, default=0, help="training seed of all")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo in the folder")
    return parser.parse_args(arguments)


def set_up() -> list[str]:
    """The package's command, after the installation if there is one to do."""
    chosen = os.environ.get("MARL_AAJR_PYTHON")
    if chosen is None:
        command = [ROOT / "scripts/setup-venv"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            raise Stop(made.returncode)
        chosen = f"{made.stdout.rstrip()}/bin/python"
    return [chosen, "-m", "marl_aajr"]


def demo(options: argparse.Namespace, jobs: Jobs) -> None:
    """The whole demo."""
    started = time.monotonic()
    settings = {name: getattr(options, name) for name in ("env_steps", "episodes", "seed")}
    out = choose_folder(options.out, settings, overwrite=options.overwrite)
    cli = set_up()
    mark = out / MARK
    mark.write_text(json.dumps({"settings": settings, "finished": False}))
    runs = {method: out / method for method in METHODS}
    logs = {method: out / f"{method}.log" for method in METHODS}

    print(f"Training {', '.join(METHODS)} on {ENV}, {options.env_steps:,} env steps each, side by side")
    signal.signal(signal.SIGINT, jobs.interrupt)
    train = {m: train_command(cli, run, m, options) for m, run in runs.items()}
    together(jobs, train, Display("training", runs, options.env_steps), logs)
    print(f"Attacking all with {', '.join(ATTACKS)} of size {' and '.join(EPSILONS)}")
    attack = {m: evaluate_command(cli, run, options) for m, run in runs.items()}
    together(jobs, attack, Display("attacking", {}, 1), logs)
    report(cli, runs.values(), out / "report.html")
    mark.write_text(json.dumps({"settings": settings, "finished": True}))
    print(f"Runs, logs and report are in {out} ({time.monotonic() - started:.0f} s in all)")


def report(cli: list[str], runs: Iterable[Path], page: Path) -> None:
    """The page, and its headline on the terminal."""
    if subprocess.run([*cli, "compare", *map(str, runs), "--out", str(page)], check=False).returncode:
        raise Stop(1, "error: the report could not be written, see above")


def main() -> int:
    """Run the demo; returns the exit code."""
    jobs = Jobs()
    try:
        demo(parse(sys.argv[1:]), jobs)
    except Stop as stop:
        if str(stop):
            print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
