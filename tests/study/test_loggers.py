"""The curves of a study elsewhere: with MLflow and Weights & Biases themselves, where they are installed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from marl_aajr.study.study import prepare
from tests.cli.conftest import CLI, quiet_environment
from tests.study.files import do, write_study


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server of our own."""
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"server --workers 1 --host 127.0.0.1 --port {port} --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    with subprocess.Popen([sys.executable, "-m", "mlflow", *words.split()], cwd=tmp_path) as process:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not answers(address):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
        process.terminate()


def answers(address: str) -> bool:
    try:
        return bool(urlopen(f"{address}/health", timeout=2).read() == b"OK")
    except URLError:
        return False


def test_each_node_is_a_run_of_mlflow_which_fails_where_the_node_does(
    server: str, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    licence = tmp_path / "licence"
    licence.touch()
    gone = {"name": "tests.faulty:gone", "label": "gone", "kwargs": {"licence": str(licence)}}
    sound = {"name": "marl_aajr.envs.simple_spread_v3", "label": "sound", "kwargs": {"N": 2}}
    file = write_study(tmp_path, log=["mlflow"], environments=[sound, gone], evaluation={"suite": None})
    plan = prepare(file, out=tmp_path / "out")
    licence.unlink()
    do(plan)

    client = MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    runs = {run.data.tags["trial_name"]: run for run in found}
    states = {name: run.info.status for name, run in runs.items()}
    assert states == {"sound-none-s0": "FINISHED", "gone-none-s0": "FAILED"}
    run = runs["sound-none-s0"]
    steps = [each.value for each in client.get_metric_history(run.info.run_id, "env_steps")]
    assert steps == sorted(steps)
    last = plan.folder.run("sound-none-s0").metrics()[-1]
    assert steps[-1] == last["env_steps"] == 400
    assert run.data.metrics["return_mean"] == pytest.approx(last["return_mean"])
    assert run.data.params["run/ppo/train_batch_size"] == "100"


def test_each_node_is_a_run_of_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    file = write_study(tmp_path, log=["wandb"], evaluation={"suite": None})
    kept = tmp_path / "wandb"
    kept.mkdir()
    environment = quiet_environment() | {"WANDB_MODE": "offline", "WANDB_DIR": str(kept)}
    words = [*CLI, "study", str(file), "--out", str(tmp_path / "out")]
    subprocess.run(words, env=environment, check=True, timeout=120)
    (run,) = kept.glob("wandb/offline-run-*/run-*.wandb")
    steps = [row["env_steps"] for row in history(run) if "env_steps" in row]
    assert steps == sorted(steps)
    assert steps[-1] == 400


def history(file: Path) -> Iterator[dict[str, Any]]:
    """What was logged to an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    for record in map(Record.FromString, records(file.read_bytes())):
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
