"""Trains variants of one configuration over seeds for the studies in this folder, a few runs at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENV = "marl_aajr.envs.simple_spread_v3"
"""Equal to mpe2's step for step, and faster."""

Cell = tuple[str, int]
"""A variant's name and a seed."""


def train_all(
    variants: Mapping[str, Mapping[str, Any]],
    cells: list[Cell],
    *,
    runs: Path,
    method: str,
    env_steps: int,
    jobs: int,
    env: str = ENV,
) -> list[list[dict[str, Any]]]:
    """Train every cell from its start or its last checkpoint; their metrics, iteration by iteration.

    Args:
        variants: Settings (of `--set`) by the name of the variant.
        cells: What to train; finished runs are not repeated.
        runs: The folder of the runs.
        method: The method of all.
        env_steps: Length of a run.
        jobs: Runs at a time, one core each.
        env: The environment.
    """

    def train(cell: Cell) -> list[dict[str, Any]]:
        name, seed = cell
        out = runs / f"{name.replace(' ', '_').replace('/', '-')}-s{seed}"
        command = [sys.executable, "-m", "marl_aajr", "train", "--out", str(out)]
        status = out / "status.json"
        state = json.loads(status.read_text())["state"] if status.exists() else None
        if state is None:
            command += ["--env", env, "--method", method, "--seed", str(seed), "--env-steps", str(env_steps)]
            for key, value in variants[name].items():
                command += ["--set", f"{key}={value}"]
        elif state != "finished":
            command += ["--resume"]
        if state != "finished":
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(train, cells))
