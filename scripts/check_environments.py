"""Trains, evaluates and compares on environments of other packages, and prints a table of what came out.

Everything is installed into a virtual environment of its own, beside the versions that this project is
tested with; what does not install there is reported. On each environment plain PPO and AAJR are trained,
evaluated by a suite and compared, by the commands that a person would type; they, and all that they print,
are in the logs. The training is far too short to learn anything: it shows that an environment is served, not
how well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "scripts" / "reference" / "environments.md"
METHODS = ("none", "aajr")
WRAPPED = "wrapped_environments"
HEADINGS = ("environment", "version", "needed", "steps/s", "return", "under the worst attack")


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        title: What it is called in the reference.
        packages: What pip installs; versions are reported, but for SuperSuit's.
        env: The name that `--env` takes.
        kwargs: Arguments of the environment.
        needed: What it takes beside the package, for the table.
        pins: Whether the package's own requirements are installed; False where they exclude ours.
        twin: The script that checks, with `--check`, that a twin of ours plays as the package does.
    """

    title: str
    packages: tuple[str, ...]
    env: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    needed: str = "nothing"
    pins: bool = True
    twin: str = ""


ENVIRONMENTS = {
    "mamujoco": Environment(
        "MaMuJoCo",
        ("gymnasium-robotics", "mujoco<=3.5"),
        "gymnasium_robotics.mamujoco_v1",
        {"scenario": "Ant", "agent_conf": "2x4", "max_episode_steps": 100},
        "`mujoco<=3.5`",
    ),
    "magent2": Environment("MAgent2", ("magent2",), "magent2.environments.battle_v4", {"map_size": 12}),
    "momaland": Environment(
        "MOMAland",
        ("momaland", "supersuit"),
        f"{WRAPPED}:item_gathering",
        needed="its LinearizeReward; SuperSuit flattens the tuples",
    ),
    "dsse": Environment(
        "DSSE", ("DSSE", "supersuit"), f"{WRAPPED}:drone_swarm", needed="SuperSuit flattens the tuples"
    ),
    "lbforaging": Environment("lbforaging", ("lbforaging",), "lbforaging:Foraging-8x8-2p-1f-v3"),
    "pogema": Environment(
        "POGEMA",
        ("pogema==1.4.0",),
        f"{WRAPPED}:pogema",
        needed="its requirements left out, and two repairs",
        pins=False,
        twin="pogema_trajectories.py",
    ),
    "pistonball": Environment(
        "Pistonball",
        ("pettingzoo[butterfly]", "supersuit"),
        f"{WRAPPED}:pistonball",
        needed="SuperSuit makes the pictures small",
    ),
    "kaz": Environment(
        "KAZ",
        ("pettingzoo[butterfly]", "supersuit"),
        f"{WRAPPED}:knights_archers_zombies",
        needed="nothing; SuperSuit's black_death here",
    ),
    "openspiel": Environment(
        "OpenSpiel (Leduc poker)",
        ("open-spiel", "shimmy"),
        f"{WRAPPED}:openspiel",
        needed="Shimmy, and a repair: it pays the last rewards twice",
    ),
    "cogrid": Environment(
        "CoGrid (Overcooked)",
        ("cogrid",),
        f"{WRAPPED}:overcooked",
        needed="observation spaces, which it does not declare",
    ),
    "rware": Environment("RWARE", ("rware",), "rware:rware-tiny-2ag-v2"),
    "sumo": Environment(
        "SUMO-RL",
        ("sumo-rl", "eclipse-sumo"),
        f"{WRAPPED}:sumo",
        needed="`SUMO_HOME`, and a repair of one line",
    ),
}


class Failed(Exception):  # noqa: N818 - of the environment that is checked, not of the check
    """A command failed; the message is its last line."""


def main() -> int:
    options = parse()
    python = set_up(options.venv.absolute())
    rows = []
    for number, name in enumerate(options.names or ENVIRONMENTS, start=1):
        say(f"[{number}/{len(options.names or ENVIRONMENTS)}] {name}")
        started = time.monotonic()
        rows.append(check(name, ENVIRONMENTS[name], python, options))
        seconds = time.monotonic() - started
        say(f"  {rows[-1]['error'] or 'trained, evaluated and compared'} ({seconds:.0f} s)")
    table = "\n".join(markdown(rows))
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(f"{table}\n")
    if options.write:
        write(rows)
    failed = [row["name"] for row in rows if row["error"]]
    say(f"{len(rows) - len(failed)} of {len(rows)} are served; table and logs are in {options.out}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    listing = "\n".join(f"  {name:<12}{' '.join(e.packages)}" for name, e in ENVIRONMENTS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/check_environments",
        description=__doc__,
        epilog=f"NAMES, and what is installed for each:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments (default: all)")
    parser.add_argument("--env-steps", type=int, default=8_000, help="length of a training (default 8,000)")
    parser.add_argument("--copies", type=int, default=4, help="copies of the environment (default 4)")
    parser.add_argument("--suite", default="quick", help="attacks of the evaluations (default quick)")
    parser.add_argument("--episodes", type=int, default=4, help="episodes of each attack (default 4)")
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "check_environments", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "check_environments", metavar="FOLDER")
    parser.add_argument("--write", action="store_true", help=f"put what came out into {REFERENCE.name}, too")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in ENVIRONMENTS]:
        parser.error(f"expected names out of {', '.join(ENVIRONMENTS)}, got {', '.join(unknown)}")
    return options


def set_up(venv: Path) -> Path:
    """The Python of the environment, with this project in it."""
    settings = {**os.environ, "MARL_AAJR_VENV": str(venv)}
    made = subprocess.run(
        [ROOT / "scripts" / "setup-venv"], env=settings, stdout=subprocess.PIPE, check=False
    )
    if made.returncode:
        sys.exit(made.returncode)
    return venv / "bin" / "python"


def check(name: str, environment: Environment, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What came out for one environment, a row of the table."""
    row: dict[str, Any] = {"name": name, "version": "", "error": ""}
    row |= {"title": environment.title, "needed": environment.needed}
    out = (options.out / name).absolute()
    out.mkdir(parents=True, exist_ok=True)
    for log in out.glob("*.log"):
        log.unlink()
    try:
        install(environment, python, out)
        row["version"] = installed(environment, python)
        if environment.twin:
            together(out, {"twin": [str(python), str(ROOT / "scripts" / environment.twin), "--check"]})
        runs = {method: out / method for method in METHODS}
        command = [str(python), "-W", "ignore", "-m", "marl_aajr"]
        together(out, {m: [*command, *train(environment, m, run, options)] for m, run in runs.items()})
        evaluate = [*command, "evaluate", "--suite", options.suite, "--workers", "1"]
        evaluate += ["--episodes", str(options.episodes)]
        evaluate += ["--selection-episodes", str(max(1, options.episodes // 2))]
        together(out, {m: [*evaluate, str(run)] for m, run in runs.items()})
        page = ["--out", str(out / "report.html")]
        together(out, {"compare": [*command, "compare", *map(str, runs.values()), *page]})
        row |= figures(runs["none"])
    except Failed as failure:
        row["error"] = str(failure)
    return row


def install(environment: Environment, python: Path, out: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-c"]
    version = [python, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.check_output(version, text=True).strip()
    wanted = [f"torch=={torch}" if environment.pins else "--no-deps", *environment.packages]
    together(out, {"install": [*pip, str(ROOT / "constraints.txt"), *wanted]})


def installed(environment: Environment, python: Path) -> str:
    packages = [re.split(r"[\[<=>]", package)[0] for package in environment.packages]
    named = [package for package in packages if package != "supersuit"]
    program = f"from importlib.metadata import version; print(*map(version, {named!r}))"
    versions = subprocess.check_output([python, "-c", program], text=True).split()
    return ", ".join(map(" ".join, zip(named, versions, strict=True)))


def train(environment: Environment, method: str, run: Path, options: argparse.Namespace) -> list[str]:
    arguments = [f"env.kwargs.{name}={value}" for name, value in environment.kwargs.items()]
    batch = max(1, options.env_steps // 4)
    settings = [*arguments, f"ppo.train_batch_size={batch}", f"ppo.minibatch_size={max(1, batch // 4)}"]
    words = ["--env", environment.env, "--method", method, "--env-steps", str(options.env_steps)]
    words += ["--envs-per-runner", str(options.copies), "--out", str(run), "--overwrite"]
    return ["train", *words, *(word for setting in settings for word in ("--set", setting))]


def together(out: Path, commands: dict[str, list[str]]) -> None:
    """Runs commands side by side, each with a log of its own.

    Raises:
        Failed: one of them failed.
    """
    home = Path(next(iter(commands.values()))[0]).parents[1] / "lib"
    sumo = next(home.glob("python*/site-packages/sumo"), home)
    settings = {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "SUMO_HOME": str(sumo)}
    running = {}
    for name, command in commands.items():
        log = out / f"{name}.log"
        with log.open("a") as output:
            print(f"$ {shlex.join(command)}", file=output, flush=True)
            running[log] = subprocess.Popen(
                command,
                env={**os.environ, **settings, "PYTHONPATH": str(ROOT / "scripts")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    for log, process in running.items():
        if process.wait():
            for other in running.values():
                other.terminate()
            raise Failed(last_error(log))


def last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors or lines)[-1]


def figures(run: Path) -> dict[str, Any]:
    """Steps per second of the training, return without attack, and the lowest under the worst of a size."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["env_steps_per_second"] for line in lines]
    (evaluation,) = (run / "evaluations").glob("*.json")
    result = json.loads(evaluation.read_text())["results"][0]
    worst = min(result["worst"], key=lambda w: w["mean"])
    attack = f"{worst['attack']['name']}, ε = {worst['attack']['epsilon']:g}"
    return {
        "steps/s": f"{sorted(steps)[len(steps) // 2]:,.0f}",
        "return": f"{result['clean']['mean']:.4g}",
        "under the worst attack": f"{worst['mean']:.4g} ({attack})",
    }


def markdown(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|" + "---|" * len(HEADINGS)
    for row in rows:
        cells = [row["title"], row["version"], row["needed"]]
        cells += [row["error"], "", ""] if row["error"] else [row[heading] for heading in HEADINGS[3:]]
        yield f"| {' | '.join(cells)} |"


def write(rows: Sequence[dict[str, Any]], reference: Path = REFERENCE) -> None:
    """Put rows in the place of those of the same title in the table of the reference."""
    _, _, *lines = markdown(rows)
    text = reference.read_text(encoding="utf-8").splitlines()
    for row, line in zip(rows, lines, strict=True):
        text[next(i for i, old in enumerate(text) if old.startswith(f"| {row['title']} |"))] = line
    reference.write_text("\n".join([*text, ""]), encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
