"""AAJR along the path of play: the rollouts' adversary is the only one; settings of another are refused."""

from __future__ import annotations

from typing import Any

import pytest

from marl_aajr.regularizers import AAJR, make_regularizer
from marl_aajr.rollout.attack.beside_regularizers import check_beside, taking_over
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack


def along(**settings: Any) -> AAJR:
    return AAJR(**({"directions": "rollout", "objective": "margin"} | settings))


def played(**settings: Any) -> RolloutAttack:
    return RolloutAttack(path="one", **settings)


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        ({"objective": "kl"}, {}, "expected the objective of the rollouts, Margin"),
        ({"norm": "l2"}, {}, "expected the norm of the rollouts, 'linf', .* got 'l2'; set it as there"),
        ({"epsilon": 0.5}, {}, "expected the epsilon of the rollouts, 0.1, .* got 0.5"),
        ({"epsilon": 0.2}, {"epsilon": ((0, 0.0), (9, 0.3))}, "expected the epsilon of the rollouts"),
        ({"steps": 4}, {"steps": 7}, "expected the steps of the rollouts, 7, .* got 4"),
        ({"step_size": "auto"}, {}, "expected the step_size of the rollouts, 0.5, .* got 'auto'"),
        ({"step": "raw"}, {}, "expected the step of the rollouts, 'sign', .* got 'raw'"),
        ({"start": "random"}, {}, "expected the start of the rollouts, None, .* got 'random'"),
        ({"low": -1.0}, {}, "expected the low of the rollouts, None, .* got -1.0"),
        ({"high": 1.0}, {"high": 2.0}, "expected the high of the rollouts, 2.0, .* got 1.0"),
        ({"leaves": ("position",)}, {}, "expected the leaves of the rollouts, None, "),
        ({"mask": (True, False)}, {}, r"expected the mask of the rollouts, None, .* got \(True, False\)"),
        ({}, {"mask": (True, False)}, r"expected the mask of the rollouts, \(True, False\), .* got None"),
        ({}, {"scale": (1.0, 2.0)}, "expected the scale of the rollouts"),
        ({}, {"channels": ("messages",)}, "expected the mask of the rollouts|expected the channels of the"),
        ({"channels": ("messages",)}, {}, "expected the channels of the rollouts, None, "),
    ],
)
def test_settings_of_another_adversary_are_refused(own: Any, theirs: Any, message: str) -> None:
    members = along(**own), along(**own) + make_regularizer("smooth_policy", leaves=own.get("leaves"))
    for regularizer in members:
        with pytest.raises(ValueError, match=message):
            check_beside(regularizer, played(**theirs))


def test_the_same_settings_and_none_are_taken() -> None:
    same: dict[str, Any] = {
        "epsilon": 0.2,
        "norm": "l2",
        "steps": 7,
        "step_size": 0.3,
        "step": "normalized",
        "mask": (True, False),
        "scale": (1.0, 2.0),
        "low": -1.0,
        "high": (1.0, 2.0),
    }
    check_beside(along(**same), played(**same))
    check_beside(along(**same), played(**same | {"step": "auto"}).ramped(0, 10))
    moves = {name: same[name] for name in ("mask", "scale")}
    check_beside(along(**moves), played(**same))  # the others' values hold
    check_beside(along(channels=("messages",)), played(channels=("messages",)))
    check_beside(along(mask=(True, False)), played(channels=("messages",)))  # as in a run
    check_beside(AAJR(epsilon=0.5, norm="l2"), played())  # its own adversary


def test_limits_that_aajr_does_not_set_are_those_of_the_rollouts() -> None:
    limits: dict[str, Any] = {"mask": (True, False), "scale": (1.0, 2.0)}
    rollouts, names = played(**limits), ("mask", "scale", "channels")
    assert taking_over(along(), rollouts, *names) == along(**limits)
    assert taking_over(along(), rollouts, "scale") == along(scale=(1.0, 2.0))
    assert taking_over(along(), played(channels=("goal",)), *names) == along(channels=("goal",))
    member = make_regularizer("smooth_policy")
    assert taking_over(along() + member, rollouts, *names) == along(**limits) + member
    own = along(mask=(False, True), scale=(1.0, 2.0))  # what is set is not replaced, but refused
    assert taking_over(own, rollouts, *names) == own
    for other in (member, AAJR()):
        assert taking_over(other, rollouts, *names) == other
    assert taking_over(along(), None, *names) == along()
