"""A script of somebody else's with our one line, on two nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]


def test_one_line_puts_aajr_into_a_script_on_tune_and_its_metrics_into_tensorboard(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The nodes have one processor each, so that the trial's process and its env runner are on both."""
    command = [sys.executable, "-m", "tests.cluster.adopted", cluster.address, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (events,) = tmp_path.glob("spread/PPO_*/events.out.tfevents.*")
    (module_state,) = tmp_path.glob(
        "spread/PPO_*/checkpoint_*/learner_group/learner/rl_module/team/module_state*"
    )
    assert module_state.stat().st_size > 0
    curves = EventAccumulator(str(events)).Reload()
    for name in ("penalty", "loss_share", "gain_mean", "monotone_fraction"):
        points = curves.Scalars(f"ray/tune/learners/team/aajr/{name}")
        assert len(points) == 2
    assert all(point.value > 0 for point in curves.Scalars("ray/tune/learners/team/aajr/penalty"))
