"""Sums of regularizers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from marl_aajr.core.distributions import Categorical, DiagGaussian
from marl_aajr.regularizers import (
    AAJR,
    ERNIE,
    NoiseAugmentation,
    SmoothPolicy,
    SpectralNormalization,
    State,
    Sum,
    make_regularizer,
)
from tests.networks import generator, observations, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"sample_fraction": 1.0}
SQUARED = AAJR(coefficient=0.5, **WHOLE)
CONSTRAINT = AAJR(coefficient=0.25, form="constraint", gain_bound=1.0, dual_step_size=0.1, **WHOLE)
SMOOTH = SmoothPolicy(coefficient=0.1, **WHOLE)


def test_a_sum_adds_losses_and_gradients() -> None:
    policy = tanh_policy(Categorical(5))
    both = evaluate(SQUARED + SMOOTH, sample_of(policy))
    noise = generator()
    parts = [member.evaluate(sample_of(policy), timestep=0, generator=noise) for member in (SQUARED, SMOOTH)]
    torch.testing.assert_close(both.loss, parts[0].loss + parts[1].loss)
    found = [gradients(evaluation, parameters(policy)) for evaluation in (*parts, both)]
    for one, other, together in zip(*found, strict=True):
        torch.testing.assert_close(one + other, together)


def test_metrics_carry_the_name_of_their_member() -> None:
    metrics = evaluate(SQUARED + SMOOTH + CONSTRAINT, sample_of(tanh_policy(Categorical(5)))).metrics
    assert {key.partition("/")[0] for key in metrics} == {"aajr", "smooth_policy", "aajr_2", "nonfinite"}
    assert metrics["aajr_2/dual"].item() == 0.25
    assert metrics["nonfinite"] == 0


def test_sums_of_sums_are_flat() -> None:
    left, right = (SQUARED + SMOOTH) + ERNIE(), SQUARED + (SMOOTH + ERNIE())
    assert left == right == Sum(members=(SQUARED, SMOOTH, ERNIE()))


def test_every_member_keeps_its_own_state() -> None:
    total = SQUARED + CONSTRAINT + replace(CONSTRAINT, coefficient=0.75)
    state: State = total.initial_state()
    assert {key: value.item() for key, value in state.items()} == {"aajr_2/dual": 0.25, "aajr_3/dual": 0.75}
    evaluation = evaluate(total, sample_of(tanh_policy(Categorical(5))), state=state)
    assert evaluation.metrics["aajr_3/dual"].item() == 0.75
    total.after_update(state, {"aajr/penalty": 9.0, "aajr_2/penalty": 2.0, "nonfinite": 0.0})
    assert state["aajr_2/dual"].item() == pytest.approx(0.25 + 0.1 * (2.0 - 1.0))
    assert state["aajr_3/dual"].item() == 0.75  # it took no part in this update


def test_members_rest_and_rise_on_their_own_schedules() -> None:
    late = replace(SMOOTH, coefficient=((0, 0.0), (10, 0.0), (20, 1.0)))
    total = SQUARED + late
    metrics = evaluate(total, sample_of(tanh_policy(Categorical(5)))).metrics
    assert not any(key.startswith("smooth_policy/") for key in metrics)
    ramped = (SQUARED + SMOOTH).ramped(10, 20)
    assert [ramped.active(t) for t in (10, 11)] == [False, True]
    assert ramped == SQUARED.ramped(10, 20) + SMOOTH.ramped(10, 20)


def test_members_are_checked_and_fitted() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    fitted = (SQUARED + SMOOTH).fitted(policy, obs, backends=["double"])
    assert fitted == replace(SQUARED, backend="double") + SMOOTH
    with pytest.raises(ValueError, match="for a Gaussian policy, got 'probs'"):
        (SQUARED + ERNIE(output="probs")).check(DiagGaussian(2))
    with pytest.raises(ValueError, match="with policy loss for noise_augmentation"):
        (SQUARED + NoiseAugmentation()).check(Categorical(2), offers={"critic"})


def test_spectral_normalization_goes_with_a_penalty() -> None:
    policy = tanh_policy(Categorical(5))
    assert isinstance(policy.module, torch.nn.Module)
    total = SQUARED + SpectralNormalization(layer_bound=0.5)
    state: State = total.initial_state()
    metrics = total.constrain(policy.module, state, exact=True)
    assert metrics["spectral_normalization/layer_norm_max"].item() == pytest.approx(0.5)
    assert set(state) == {"spectral_normalization/vector/0", "spectral_normalization/vector/2"}
    assert evaluate(total, sample_of(policy), state=state).loss > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected the settings members of 'sum', got none"),
        ({"members": [{"name": "aajr"}]}, "expected at least two members in a sum, got 1"),
        ({"members": [{"name": "aajr"}, "ernie"]}, "expected regularizers as members of a sum, got 'ernie'"),
        ({"members": [{"name": "aajr"}, {"steps": 1}]}, "expected a name in every member of a sum"),
        ({"members": [{"name": "aajr"}, {"name": "ernie", "form": "hinge"}]}, "settings of 'ernie' out of"),
    ],
)
def test_bad_members_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_regularizer("sum", **settings)
