"""Runs that learn under disturbed actions: resumed, undisturbed by α = 0, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import make_config
from marl_aajr.training.trainer import train
from tests.training.runs import TINY, assert_same_run, numbers, tiny, train_and_copy


@pytest.mark.usefixtures("ray_session")
def test_a_run_under_disturbance_is_resumed_to_the_same_numbers_and_alpha_0_is_none(tmp_path: Path) -> None:
    plain = train(tiny(env_steps=100), tmp_path / "plain")
    nothing = train(tiny(env_steps=100, disturb="replace=0"), tmp_path / "nothing")
    assert [line["return_mean"] for line in numbers(plain)] == [
        line["return_mean"] for line in numbers(nothing)
    ]
    disturbed = tiny(env_steps=300, disturb="replace=0.5", checkpoint_every=1)
    straight, run = train_and_copy(disturbed, tmp_path, after=2)
    assert numbers(straight)[0]["return_mean"] != numbers(plain)[0]["return_mean"]
    assert_same_run(straight, train(disturbed, run, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disturb": "replace=2"}, r"disturb: expected α of replace in \[0, 1\], got 2.0"),
        ({"disturb": "mix=0.1"}, r"disturb mix=0.1: expected Box actions for mix, got Discrete\(5\)"),
        ({"disturb": "replace=0.1,agents=bob"}, "disturb replace=0.1,agents=bob: .* got 'bob'"),
        ({"disturb": "gradient=0.1"}, "expected disturb replace, mix or noise, got gradient=0.1: its critic"),
        ({"disturb": "replace=0.1,by=/nowhere"}, "finished run as the adversary of disturb, got /nowhere"),
        (
            {"disturb": "replace=0.1", "method": "atla"},
            "a method other than atla with disturb, got fast and atla",
        ),
        (
            {"disturb": "replace=0.1", "resources": {"envs_per_runner": 4, "runner": "stock"}},
            "expected resources.runner fast and .* with disturb, got stock and none",
        ),
    ],
)
def test_what_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(make_config({**TINY, **changes}))
