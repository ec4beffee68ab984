"""Resume equals not stopping: to the bit, from another process, after Ctrl-C and after kill -9."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from marl_aajr.training.config import RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from tests.forked import Forked, joining
from tests.training.runs import assert_same_run, numbers, tiny

pytestmark = pytest.mark.usefixtures("ray_session")

EVERYTHING = {
    "method": {"name": "aajr", "coefficient": 0.01, "adversarial_weight": 0.5, "ramp": [0.1, 0.9]},
    "policies": "independent",
    "observation_filter": "mean_std",
    "ppo": {"lr": [[0, 1e-2], [600, 1e-3]], "entropy_coeff": [[0, 0.1], [600, 0]], "kl_coeff": 0.2},
}
"""Whatever has a state: optimisers, KL coefficients, schedules, filters, a regularizer with its generator."""

KILLED = """
import os, signal, sys
from pathlib import Path
from marl_aajr.training.config import load_config
from marl_aajr.training.trainer import train

def kill(record):
    if record["iteration"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_config(sys.argv[1]), Path(sys.argv[2]), on_iteration=kill)
"""


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny(**EVERYTHING)


@pytest.fixture(scope="module")
def straight(config: RunConfig, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("resume") / "straight")


def stopped_after(iteration: int, config: RunConfig, out: Path) -> Path:
    seen: list[dict[str, Any]] = []
    train(config, out, on_iteration=seen.append, should_stop=lambda: seen[-1]["iteration"] == iteration)
    return out


@pytest.mark.parametrize("iteration", [1, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    iteration: int, config: RunConfig, straight: Path, tmp_path: Path
) -> None:
    """After 4 there is a checkpoint, after 1 there is none."""
    run = RunDirectory(stopped_after(iteration, config, tmp_path / "run"))
    assert (run.status().state, run.status().iteration) == ("interrupted", iteration)
    assert len(numbers(run.path)) == iteration
    assert (run.victim / "victim.json").is_file()
    train(config, run.path, resume=True)
    assert run.status().state == "finished"
    assert_same_run(straight, run.path)
    assert len(list(run.tensorboard.iterdir())) == 1


def test_a_killed_process_is_resumed_from_its_last_checkpoint_and_trains_an_iteration_again(
    config: RunConfig, straight: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    program = ("-c", KILLED, tmp_path / "config.yaml", tmp_path / "run")
    done = Forked(program, cwd=tmp_path, **joining()).finish()  # where sets, too, have another order
    assert done.returncode == -9
    run = RunDirectory(tmp_path / "run")
    assert (run.status().state, run.iterations()) == ("running", [2, 4])
    assert len(run.metrics()) == 5
    run.versions_file.write_text(run.versions_file.read_text().replace(ray.__version__, "2.0"))
    train(config, run.path, resume=True)
    assert_same_run(straight, run.path)
    (resumed,) = run.events()
    assert (resumed["after"], resumed["repeated"]) == ("running", 1)
    assert resumed["versions"] == {"ray": ray.__version__}


def test_another_seed_is_another_run(config: RunConfig, straight: Path, tmp_path: Path) -> None:
    other = train(config.model_copy(update={"seed": 4, "env_steps": 100}), tmp_path / "run")
    assert numbers(other)[0]["return_mean"] != numbers(straight)[0]["return_mean"]


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny(env_steps=300)
    run = RunDirectory(stopped_after(2, config, tmp_path / "run"))
    file = run.checkpoint(2) / "algorithm" / "learner_group" / "learner" / "state.pkl"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"000002 is damaged \(.*state\.pkl is missing or has changed\); del"
    ):
        train(config, run.path, resume=True)
    shutil.rmtree(run.checkpoint(2))
    train(config, run.path, resume=True)
    assert run.status().state == "finished"
