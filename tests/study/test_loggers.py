"""The curves of a study elsewhere: with MLflow and Weights & Biases themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.study.driver import prepare
from tests.study.files import TINY, do, write_study


@pytest.mark.slow
def test_each_node_is_a_run_elsewhere_which_fails_where_the_node_does(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One crashes, which Tune sees; one cannot be made, which its process reports."""
    # Here, as loading both takes a second, for which every process of the tests would wait.
    mlflow = pytest.importorskip("mlflow")
    entry_of = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record.FromString
    server = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("WANDB_MODE", "offline")  # Ray's processes have it from its start
    file = tmp_path / "file"
    file.touch()
    environments = [
        {"name": "marl_aajr.envs.simple_spread_v3", "label": "sound", "kwargs": {"N": 2}},
        {"name": "tests.faulty:gone", "label": "gone", "kwargs": {"licence": str(file)}},
        {
            "name": "tests.faulty:faulty",
            "label": "crashing",
            "kwargs": {"when": str(tmp_path), "how": "raises"},
        },
    ]
    run = {**TINY["run"], "env_steps": 200}
    changes: dict[str, Any] = {"environments": environments, "evaluation": {"suite": None}, "retries": 0}
    plan = prepare(write_study(tmp_path, log=["mlflow", "wandb"], run=run, **changes), out=tmp_path / "out")
    file.unlink()
    do(plan)

    client = mlflow.MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    runs = {run.data.tags["trial_name"]: run for run in found}
    states = {name.partition("-")[0]: run.info.status for name, run in runs.items()}
    assert states == {"sound": "FINISHED", "gone": "FAILED", "crashing": "FAILED"}
    sound = runs["sound-none-s0"]
    steps = [each.value for each in client.get_metric_history(sound.info.run_id, "env_steps")]
    last = plan.folder.run("sound-none-s0").metrics()[-1]
    assert steps[-1] == last["env_steps"] == 200
    assert sound.data.metrics["return_mean"] == pytest.approx(last["return_mean"])
    assert sound.data.params["run/ppo/train_batch_size"] == "100"

    codes: dict[str, int] = {}
    for log in plan.folder.tune.glob("*/*/wandb/offline-run-*/run-*.wandb"):
        entries = [entry_of(data) for data in records(log.read_bytes())]
        for name in {entry.run.display_name for entry in entries if entry.HasField("run")}:
            (codes[name],) = (entry.exit.exit_code for entry in entries if entry.HasField("exit"))
            if name == "sound-none-s0":
                assert [row["env_steps"] for row in history(entries) if "env_steps" in row] == steps
    assert codes == {"sound-none-s0": 0, "gone-none-s0": 1, "crashing-none-s0": 1}


def history(found: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """What was logged to an offline run."""
    for record in found:
        if record.HasField("history"):
            yield {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }


def records(data: bytes) -> Iterator[bytes]:
    """Of a log of LevelDB: in blocks of 32 KiB, each piece behind its checksum, length and kind."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""
