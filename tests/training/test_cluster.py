from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from marl_aajr.training.cluster import ray_for
from marl_aajr.training.loop import native_warning_hidden
from marl_aajr.training.resources import Resources
from tests.patience import PATIENCE


def test_what_others_started_is_used_and_left_running(ray_session: None) -> None:
    before = ray.get_runtime_context().gcs_address
    with ray_for(Resources()):
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("resources", "detail"),
    [
        ({"env_runners": 3}, r"2 CPU .* needs 3 CPU and 0 GPU \(3 env runner\(s\) with 1 CPU"),
        ({"env_runners": 1, "learners": 1, "cpus_per_learner": 1.5}, "needs 2.5 CPU and 0 GPU"),
        ({"env_runners": 1, "cpus_per_env_runner": 0, "gpus_per_env_runner": 0.5}, "needs 0 CPU and 0.5 GPU"),
    ],
)
def test_more_than_the_cluster_has_is_refused_at_once(
    ray_session: None, resources: dict[str, Any], detail: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=detail), ray_for(Resources(**resources)):
        pass
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_where_nothing_answers_is_refused_quickly(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="no Ray cluster answers at"), ray_for(Resources(address=address)):
        pass
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["localhost", "ray://localhost:10001", "localhost:http"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected host:port or auto"), ray_for(Resources(address=address)):
        pass


STARTS_WORKERS = """\
import signal
import sys
import ray
from marl_aajr.training.cluster import ray_for
from marl_aajr.training.resources import Resources
before = signal.getsignal(signal.SIGTERM)
for address in (None, sys.argv[1]):
    with ray_for(Resources(address=address), own_environments=True):
        assert signal.getsignal(signal.SIGTERM) == before  # not Ray's exit
        own = ray.remote(runtime_env={"env_vars": {"OWN": "1"}})
        assert ray.get(own(lambda: 7).remote(), timeout=60) == 7
    assert not ray.is_initialized()
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
with ray_for(Resources()):
    pass
try:
    with ray_for(Resources(), own_environments=True):
        pass
except ValueError as error:
    print(error)
"""


@pytest.mark.usefixtures("ray_session")
def test_where_a_path_has_spaces_ray_is_started_or_joined_quietly_and_one_that_starts_no_workers_refused(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "my venv"
    prefix.symlink_to(sys.prefix)
    python = prefix / Path(sys.executable).relative_to(sys.prefix)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    words = [python, "-c", STARTS_WORKERS, ray.get_runtime_context().gcs_address]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    (refused,) = done.stdout.splitlines()
    assert "start it by ray.init(runtime_env={'py_executable': \"'" in refused


def test_only_the_needless_warning_is_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with native_warning_hidden():
        os.write(2, b"E 1 core_worker.cc: Actor has constructor arguments in the object store and ")
        os.write(2, b"max_restarts > 0. If ...\nsomething else\n")
    assert capfd.readouterr().err == "something else\n"
