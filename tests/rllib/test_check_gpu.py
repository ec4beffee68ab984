"""The check of a GPU, on the CPU: all that it does but the tests that it starts."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def check_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("check_gpu")


OPTIONS = Namespace(device="cpu", rounds=1, copies=[8])


def test_nothing_waits_at_a_step_or_a_minibatch_but_where_the_processor_alone_does(check_gpu: Any) -> None:
    found = check_gpu.waits(OPTIONS)["waits"]
    files = {what: {Path(line.split(":")[0]).name for line in lines} for what, lines in found.items()}
    assert files["step"] <= {"fragments.py"}  # episodes are counted on the host, once per fragment
    # Gradients are checked at once here; on a device, at the end of the update.
    assert files["minibatch"] <= {"learner.py"}
    assert files["minibatch_aajr"] <= {"learner.py", "regularized_module.py", "update_report.py"}


def test_reading_a_number_or_a_mask_of_the_device_is_a_wait(check_gpu: Any) -> None:
    x = torch.arange(4)
    for work, waits in (
        (lambda: x.sum().item(), 1),
        (lambda: x[x > 1], 1),
        (lambda: x[x], 0),
        (x.nonzero, 1),
    ):
        with check_gpu.Waits("cpu") as counter:
            work()
        assert sum(counter.found.values()) == waits


def test_sampling_and_iterations_are_measured(check_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "EPOCHS", 1)
    sampled = check_gpu.bench_rollout.over_copies(OPTIONS)["copies on cpu"]
    assert sampled["8"]["env_steps_per_second"] > 0
    found = check_gpu.iterations(OPTIONS)
    assert found["policy_on"] == ["cpu"]
    assert found["aajr_ratio"] > 0
