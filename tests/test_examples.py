"""Every example runs, with smaller numbers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import ray

from tests.forked import Forked, joining

EXAMPLES = sorted((Path(__file__).parent.parent / "scripts" / "examples").glob("*.py"))
RUN = '"env_steps": 200, "ppo": {"train_batch_size": 200, "minibatch_size": 100}'
BATCH = ("batch_size_per_learner=1000, minibatch_size=500", "batch_size_per_learner=100, minibatch_size=50")
SMALLER: dict[str, list[tuple[str, str]]] = {
    "attack_a_policy": [("episodes=10", "episodes=2")],
    "finetune": [("steps: int = 60", "steps: int = 6")],
    "own_attack": [("corners=50", "corners=5"), ("episodes=10", "episodes=2")],
    "own_environment": [('"env_steps": 8_000', RUN), ("episodes=20", "episodes=2")],
    "own_regularizer": [BATCH],
    "plug_into_rllib": [BATCH],
    "study_on_a_cluster": [
        ("{env_steps: 4000}", f"{{{RUN}}}"),
        ("episodes: 10, selection_episodes: 5", "episodes: 2, selection_episodes: 2"),
    ],
    "train_and_compare": [
        ('"env_steps": STEPS', RUN),
        ("episodes=20, selection_episodes=10", "episodes=2, selection_episodes=2"),
    ],
}
"""Numbers of an example, and what is put for them: whole programs run, in seconds."""

HERE = ("own_environment", "own_regularizer", "plug_into_rllib", "train_and_compare")
"""Those that train: on the Ray of this process; the others run in processes of their own."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_runs(
    program: Path,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = program.read_text(encoding="utf-8")
    for number, smaller in SMALLER.get(program.stem, []):
        assert text.count(number) == 1, number
        text = text.replace(number, smaller)
    (copy := tmp_path / program.name).write_text(text, encoding="utf-8")
    if program.stem in HERE:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, program.stem, raising=False)
        runpy.run_path(str(copy), run_name="__main__")
        assert capsys.readouterr().out.strip()
        return
    # The cluster of two nodes that it would start otherwise is started by tests/cluster.
    cluster = [ray.get_runtime_context().gcs_address] if program.stem == "study_on_a_cluster" else []
    done = Forked([copy, *cluster], cwd=tmp_path, WARM_COMMANDS="yes", **joining()).finish()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
