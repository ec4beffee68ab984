"""Settings that make no sense, alone or together, are refused before anything trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray import tune

from marl_aajr.core.distributions import Categorical, DiagGaussian
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, make_regularizer
from tests.core.test_jacobian import Attention
from tests.networks import observations, tanh_policy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": -1}, "expected finite values ≥ 0 for coefficient"),
        ({"epsilon": 0}, "expected a finite epsilon > 0, got 0"),
        ({"epsilon": [[0, 0.1], [5, 0.0]]}, "expected a finite epsilon > 0, got 0"),
        ({"adversarial_weight": 1.5}, r"expected adversarial_weight in \[0, 1\], got 1.5"),
        ({"steps": 0}, "expected an integer steps ≥ 1, got 0"),
        ({"steps": 2.5}, "expected an integer steps ≥ 1, got 2.5"),
        ({"steps": True}, "expected an integer steps ≥ 1, got True"),
        ({"step_size": 0}, "expected a step_size > 0"),
        ({"step_size": [[0, 0.5], [9, 0.0]]}, "expected a step_size > 0"),
        ({"step_size": "small"}, "expected a number, a schedule or 'auto' for step_size, got 'small'"),
        ({"step": "huge"}, "expected step out of sign, normalized, raw; got 'huge'"),
        ({"start": "corner"}, "expected start out of zero, random; got 'corner'"),
        ({"start": "zero"}, r"with KL\(\), got start='zero'; its gradient vanishes"),
        ({"sample_fraction": 0}, r"expected a sample_fraction in \(0, 1\]"),
        ({"objective": "loss"}, "expected objective out of kl, surrogate, margin, value; got 'loss'"),
        ({"output": "value"}, "expected output out of logits"),
        ({"backend": "magic"}, "expected backend out of auto, mlp, forward, double, central"),
        ({"metric": "none"}, "expected metric out of detached, full"),
        ({"metric": "full"}, "expected metric='detached' with output='logits', which has no metric"),
        ({"norm": "l1"}, "expected norm out of linf, l2"),
        ({"form": "cubed"}, "expected form out of squared, hinge, constraint; got 'cubed'"),
        ({"gain_bound": 1.0}, "expected no gain_bound with form='squared', which has none, got 1.0"),
        ({"form": "hinge"}, "expected a finite gain_bound ≥ 0 with form='hinge', got None"),
        (
            {"form": "constraint", "gain_bound": -1},
            "expected a finite gain_bound ≥ 0 with form='constraint', got -1",
        ),
        (
            {"form": "hinge", "gain_bound": 1.0, "dual_step_size": 0.1},
            "expected no dual_step_size with form='hinge', which has no dual variable, got 0.1",
        ),
        ({"dual_bounds": [0, 1]}, r"expected no dual_bounds with form='squared'.*got \[0, 1\]"),
        (
            {"form": "constraint", "gain_bound": 1.0, "dual_step_size": 0},
            "expected a finite dual_step_size > 0, got 0",
        ),
        (
            {"form": "constraint", "gain_bound": 1.0, "dual_bounds": [1.0, 0.5]},
            r"expected dual_bounds \[low, high\] with 0 ≤ low < high, got \[1.0, 0.5\]",
        ),
        (
            {"form": "constraint", "gain_bound": 1.0, "coefficient": [[0, 0.0], [5, 1.0]]},
            "expected a number as coefficient with form='constraint'",
        ),
        (
            {"form": "constraint", "gain_bound": 1.0, "coefficient": 2.0},
            r"expected a coefficient within dual_bounds \[0.0, 1.0\], got 2.0",
        ),
        ({"secant": True, "backend": "double"}, "expected no backend with secant=True.*got 'double'"),
        ({"dual_clip": 3.0}, "expected no dual_clip with adversarial_weight=0.*got 3.0"),
        ({"dual_clip": 1.0, "adversarial_weight": 0.5}, "expected a dual_clip > 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_regularizer("aajr", **settings)


def test_settings_that_do_not_fit_the_policy_are_refused() -> None:
    with pytest.raises(ValueError, match="for a Gaussian policy, got 'probs'"):
        AAJR(output="probs").check(DiagGaussian(2))
    with pytest.raises(ValueError, match="got a Gaussian one"):
        AAJR(objective="margin").check(DiagGaussian(2))


def test_settings_that_ask_for_more_than_the_learner_has_are_refused() -> None:
    """SAC has neither a clipped policy loss nor advantages; a centralised critic is not the agent's own."""
    with pytest.raises(ValueError, match=r"with critic for the objective Value\(\), got advantages"):
        AAJR(objective="value").check(Categorical(2), offers={"advantages"})
    with pytest.raises(
        ValueError, match=r"with advantages for the objective Surrogate\(\), got none of these"
    ):
        AAJR(objective="surrogate").check(Categorical(2), offers=set())
    with pytest.raises(ValueError, match="with policy loss for adversarial_weight > 0"):
        AAJR(adversarial_weight=0.5).check(Categorical(2), offers={"critic"})
    AAJR().check(Categorical(2), offers=set())


def test_the_backend_is_settled_for_the_policy() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    assert AAJR().fitted(policy, obs).backend == "mlp"
    assert AAJR().fitted(ModulePolicy(policy, policy.distribution), obs).backend == "forward"
    assert AAJR().fitted(policy, obs, backends=["double", "central"]).backend == "double"
    assert AAJR(secant=True).fitted(policy, obs) == AAJR(secant=True)
    attention = ModulePolicy(Attention(), Categorical(6))
    with pytest.raises(ValueError, match="expected a policy that backend='forward' can differentiate"):
        AAJR(backend="forward").fitted(attention, torch.randn(2, 5, 6))


@pytest.mark.parametrize(
    "space", [tune.grid_search([1e-3, 1e-2]), tune.loguniform(1e-4, 1e-2)], ids=["grid", "distribution"]
)
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("aajr", "coefficient"),
        ("aajr", "steps"),
        ("ernie", "output"),
        ("spectral_normalization", "layer_bound"),
    ],
)
def test_a_search_space_belongs_around_a_regularizer(space: Any, name: str, setting: str) -> None:
    """Tune looks for spaces in dicts and lists, and would leave one inside a value as it is."""
    with pytest.raises(
        ValueError, match=rf"for {setting}, got the search space .*grid_search\(\[\w+\({setting}="
    ):
        make_regularizer(name, **{setting: space})
