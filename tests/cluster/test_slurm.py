"""The SLURM script on two nodes that are this machine, with stand-ins for what SLURM brings."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.study.files import write_study

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster" / "slurm.sh"

SRUN = """\
#!/bin/bash
echo "$@" >> "$(dirname "$0")/asked"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""

SCONTROL = """\
#!/bin/bash
[ "$*" = "show hostnames two" ] && printf '127.0.0.1\\nlocalhost\\n'
"""


@pytest.fixture
def job(environment: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job on two nodes with one processor each."""
    write_program(tmp_path / "srun", SRUN)
    write_program(tmp_path / "scontrol", SCONTROL)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as ray:  # short, for the names of its sockets
        yield os.environ | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "MARL_AAJR_VENV": str(environment),
            "RAY_TMPDIR": ray,
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "two",
            "SLURM_JOB_ID": str(free_port() - 20_000),
            "SLURM_CPUS_ON_NODE": "1",
        }


def write_program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def free_port() -> int:
    """One of those that the script takes, by the number of the job."""
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError


def submit(job: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], env=job, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_job_has_all_of_its_nodes(job: dict[str, str], tmp_path: Path) -> None:
    """The command runs a process on each of them, to compare versions, and counts their processors."""
    done = submit(job, "study", write_study(tmp_path), "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " on 2 CPUs, " in " ".join(done.stdout.split())
    head, node = sorted((tmp_path / "asked").read_text().splitlines(), key=lambda line: "--head" not in line)
    assert "--nodelist=127.0.0.1 " in head
    assert "--nodelist=localhost " in node
    assert subprocess.run(["pgrep", "-f", job["RAY_TMPDIR"]], check=False).returncode == 1, "Ray is left"


def test_a_job_that_is_submitted_again_resumes(job: dict[str, str], tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    starts_ray = '[ "$2" = ray.scripts.scripts ] && exec sleep 60'
    write_program(programs / "python", f'#!/bin/sh\n{starts_ray}\n[ "$1" = - ] || echo "$@"\n')
    job["MARL_AAJR_VENV"] = str(programs.parent)
    run = tmp_path / "run"
    words = ("train", "--env", "simple_spread_v3", "--out", run)
    assert submit(job, *words).stdout == f"-m marl_aajr train --env simple_spread_v3 --out {run}\n"
    run.mkdir()
    (run / "config.yaml").touch()
    assert submit(job, *words).stdout == f"-m marl_aajr train --resume --out {run}\n"


def test_a_job_ends_where_ray_cannot_start(job: dict[str, str], tmp_path: Path) -> None:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    starts_ray = '[ "$2" = ray.scripts.scripts ] && exit 3'
    write_program(programs / "python", f"#!/bin/sh\n{starts_ray}\nexec sleep 60\n")
    done = submit(job | {"MARL_AAJR_VENV": str(programs.parent)}, "train")
    assert done.returncode == 1
    assert "error: Ray has ended on a node" in done.stderr


def test_an_environment_from_which_ray_starts_no_nodes_is_refused(job: dict[str, str]) -> None:
    done = submit(job | {"MARL_AAJR_VENV": "/home/me/my work/.venv"}, "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: Ray starts no nodes from /home/me/my work/.venv/bin" in done.stderr
