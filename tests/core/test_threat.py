"""Projections are the nearest points of the set; samples and steps stay inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from marl_aajr.core.threat import PerturbationSet
from tests.networks import generator, observations

SETS: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf"},
    "l2": {"norm": "l2"},
    "linf masked": {"norm": "linf", "mask": (True, False, True)},
    "l2 masked": {"norm": "l2", "mask": (True, False, True)},
    "linf scaled": {"norm": "linf", "scale": (1.0, 0.1, 3.0)},
    "l2 scaled": {"norm": "l2", "scale": (1.0, 0.1, 3.0)},
    "linf bounded": {"norm": "linf", "low": -0.2, "high": 0.4},
    "l2 bounded": {"norm": "l2", "low": -0.2, "high": 0.4},
    "l2 everything": {
        "norm": "l2",
        "mask": (True, True, False),
        "scale": (1.0, 0.5, 2.0),
        "low": -0.3,
        "high": (0.1, 0.2, 0.3),
    },
}
each_set = pytest.mark.parametrize("name", SETS)


@each_set
def test_projection_is_the_nearest_point(name: str) -> None:
    """Against a general constrained optimiser, which knows nothing of our formulas."""
    threat = PerturbationSet(epsilon=0.5, **SETS[name])
    obs = 0.3 * observations(4, 3)
    delta = observations(4, 3, seed=1)
    projected = threat.project(delta, obs)
    assert threat.contains(projected, obs).all()
    scale = np.array(threat.scale or (1.0,) * 3)
    mask = np.array(threat.mask or (True,) * 3)
    for i in range(4):
        low = np.minimum(np.array(-np.inf if threat.low is None else threat.low) - obs[i].numpy(), 0)
        high = np.maximum(np.array(np.inf if threat.high is None else threat.high) - obs[i].numpy(), 0)
        if threat.norm == "linf":
            low, high = np.maximum(low, -0.5 * scale), np.minimum(high, 0.5 * scale)
        low, high = np.where(mask, low, 0), np.where(mask, high, 0)
        ball = {"type": "ineq", "fun": lambda x: 0.25 - ((x / scale) ** 2).sum()}
        target = delta[i].numpy()
        solution = minimize(
            lambda x, target=target: ((x - target) ** 2).sum(),
            np.zeros(3),
            bounds=list(zip(low, high, strict=True)),
            constraints=[ball] if threat.norm == "l2" else [],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(projected[i].numpy(), solution.x, atol=2e-5)


@each_set
@given(seed=st.integers(0, 10_000), length=st.floats(0, 100))
@settings(max_examples=30, deadline=None)
def test_projection_is_idempotent_and_keeps_what_is_inside(name: str, seed: int, length: float) -> None:
    threat = PerturbationSet(epsilon=0.5, **SETS[name])
    obs = observations(5, 3, seed=seed)
    projected = threat.project(length * observations(5, 3, seed=seed + 1), obs)
    assert threat.contains(projected, obs).all()
    torch.testing.assert_close(threat.project(projected, obs), projected, atol=1e-9, rtol=1e-7)


@each_set
def test_samples_lie_inside_and_fill_the_set(name: str) -> None:
    threat = PerturbationSet(epsilon=0.5, **SETS[name])
    obs = torch.zeros(4000, 3, dtype=torch.float64)
    delta = threat.sample(obs, generator=generator())
    assert threat.contains(delta, obs).all()
    assert threat.size(delta).max() > 0.38
    assert torch.equal(delta, threat.sample(obs, generator=generator()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_samples_are_uniform_in_the_ball(norm: Any) -> None:
    """P(‖δ‖ ≤ r ε) = r^d."""
    threat = PerturbationSet(epsilon=0.5, norm=norm)
    size = threat.size(threat.sample(torch.zeros(20_000, 3), generator=generator())) / 0.5
    for r in (0.3, 0.6, 0.9):
        assert abs((size <= r).double().mean() - r**3) < 0.01


def test_an_observation_outside_its_bounds_keeps_delta_zero_admissible() -> None:
    threat = PerturbationSet(epsilon=0.5, low=0.0, high=1.0)
    obs = torch.tensor([[-0.3, 1.2, 0.5]])
    assert threat.contains(torch.zeros_like(obs), obs).all()
    projected = threat.project(torch.tensor([[-1.0, 1.0, 1.0]]), obs)
    torch.testing.assert_close(projected, torch.tensor([[0.0, 0.0, 0.5]]))


def test_contains_refuses_what_is_outside() -> None:
    obs = torch.zeros(1, 3)
    threat = PerturbationSet(epsilon=0.5, mask=(True, False, True), high=0.3)
    for delta in ([0.6, 0, 0], [0, 0.1, 0], [0.4, 0, 0], [float("nan"), 0, 0]):
        assert not threat.contains(torch.tensor([delta]), obs).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "expected a finite epsilon > 0, got 0"),
        ({"epsilon": -1.0}, "expected a finite epsilon > 0"),
        ({"epsilon": float("inf")}, "expected a finite epsilon > 0"),
        ({"epsilon": 1, "norm": "l1"}, "expected norm out of linf, l2; got 'l1'"),
        ({"epsilon": 1, "scale": (1.0, 0.0)}, "expected scales > 0"),
        ({"epsilon": 1, "mask": (False, False)}, "leaves the adversary a feature"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbationSet(**settings)


def test_a_mask_of_the_wrong_length_is_refused_by_name() -> None:
    threat = PerturbationSet(epsilon=0.5, mask=(True, False))
    with pytest.raises(ValueError, match="expected 3 features in mask, got 2"):
        threat.project(torch.zeros(1, 3), torch.zeros(1, 3))


@each_set
def test_actions_reach_every_point_of_the_set_and_none_beyond(name: str) -> None:
    threat = PerturbationSet(epsilon=0.5, **SETS[name])
    obs = 0.3 * observations(50, 3)
    wild = threat.squash(5 * observations(50, 3, seed=1), obs)
    assert threat.contains(wild, obs).all()
    assert (threat.size(wild) > 0.4).any()
    wanted = threat.sample(obs, generator=generator())
    unit = threat.preconditioner(obs)
    scaled = wanted if unit is None else wanted / unit.clamp(min=1e-9)
    torch.testing.assert_close(threat.squash(scaled / 0.5, obs), wanted)


def test_in_a_ball_without_bounds_an_action_is_a_hard_tanh() -> None:
    action = 2 * observations(20, 3)
    expected = 0.1 * torch.nn.functional.hardtanh(action)
    assert torch.equal(PerturbationSet(epsilon=0.1).squash(action, torch.zeros(20, 3)), expected)
