"""Runs small enough for tests, and what must be equal between two of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import ray
import torch

from marl_aajr.training.config import RunConfig, make_config
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim

TINY: dict[str, Any] = {
    "env": {"name": "simple_spread_v3", "kwargs": {"N": 2}},
    "seed": 3,
    "env_steps": 600,
    "checkpoint_every": 2,
    "model": {"hidden": [8]},
    "ppo": {"train_batch_size": 100, "minibatch_size": 50, "epochs": 2},
    "resources": {"envs_per_runner": 4},
}
"""Six iterations of 100 environment steps."""


def tiny(**changes: Any) -> RunConfig:
    """`TINY` with sections merged and other settings replaced."""
    data = {**TINY, **changes}
    for key, value in changes.items():
        if isinstance(TINY.get(key), dict) and key != "env":
            data[key] = {**TINY[key], **value}
    if "language" in data["model"]:  # which has sizes of its own
        data["model"] = changes["model"]
    return make_config(data)


def numbers(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["env_steps_per_second"]
        for module in line["modules"].values():
            module.pop("aajr/seconds", None)
    return lines


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The exported policies, their filters, and the learner's last checkpoint: critics and optimisers."""
    directory = RunDirectory(run)
    victim = Victim.load(directory.victim)
    result = {
        f"{name}/{key}": value
        for name, module in victim.modules.items()
        for key, value in module.state_dict().items()
    }
    result |= {f"{agent}/mean": f.mean for agent, f in victim.filters.items() if f is not None}
    learner = directory.checkpoint(directory.iterations()[-1]) / "algorithm" / "learner_group" / "learner"
    for file in sorted(learner.rglob("*state.pkl")):
        state = pickle.loads(file.read_bytes())
        result |= _tensors({k: v for k, v in state.items() if k != "metrics_logger"}, file.parent.name)
    return result


def _tensors(value: Any, path: str) -> dict[str, torch.Tensor]:
    if isinstance(value, dict):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), part) for i, part in enumerate(value)]
    else:
        try:
            return {path: torch.as_tensor(value)}
        except (TypeError, ValueError, RuntimeError):
            return {}
    return {key: found for name, part in items for key, found in _tensors(part, f"{path}/{name}").items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics equal but for times; weights, filters and optimiser states equal bit for bit."""
    assert numbers(one) == numbers(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert len(first) > 10
    differing = [key for key, value in first.items() if not torch.equal(value, second[key])]
    assert differing == []


def train_and_copy(config: RunConfig, folder: Path, *, after: int) -> tuple[Path, Path]:
    """A run without a stop, and what there was of it after an iteration: what one killed then leaves."""
    straight, copy = folder / "straight", folder / "copy"

    def keep(record: dict[str, Any]) -> None:
        if record["iteration"] == after:
            shutil.copytree(straight, copy)

    return train(config, straight, on_iteration=keep), copy


def kill_a(kind: str) -> None:
    """`kill -9` one process of the run by a part of its actor's class name."""
    actors = ray._private.state.actors().values()
    alive = [actor for actor in actors if actor["State"] == "ALIVE" and kind in actor["ActorClassName"]]
    os.kill(alive[0]["Pid"], signal.SIGKILL)
