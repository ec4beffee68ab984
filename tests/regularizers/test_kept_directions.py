"""AAJR along the path of play: which rows count, what the dual variable does, how stale directions are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, Sample
from marl_aajr.regularizers.sample import Earlier
from tests.networks import generator, tanh_policy
from tests.regularizers.samples import evaluate, sample_of
from tests.regularizers.test_sample import assert_average, parts

FRESH = AAJR(coefficient=1.0, sample_fraction=1.0, points="all", epsilon=0.3, objective="margin")
ALONG = replace(FRESH, directions="rollout")
CONSTRAINT = replace(ALONG, form="constraint", coefficient=0.5, gain_bound=0.1, dual_step_size=0.01)
LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"mask": (False, False, True, False, False, False)},
    {"scale": (1.0, 5.0, 0.1, 1.0, 2.0, 1.0), "mask": (True, True, True, False, True, True)},
)


def played(policy: ModulePolicy, regularizer: AAJR = FRESH, *, attacked: Tensor | None = None) -> Sample:
    """A minibatch whose rows (or only these) were attacked by the regularizer's own adversary."""
    sample = sample_of(policy, rows=8)
    path = ascend(
        policy,
        sample.obs,
        Margin(),
        regularizer.perturbations(0),
        steps=3,
        step_size=0.15,
        generator=generator(),
    )
    kept = torch.stack([path.deltas[:-1], path.directions]).movedim((2, 0, 1), (0, 1, 2))
    if attacked is not None:
        kept = kept * attacked[:, None, None, None]
    return replace(sample, path=kept)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("directions", ["rollout", "epoch"])
def test_kept_directions_of_a_policy_that_stands_still_are_fresh(directions: Any, limits: Any) -> None:
    """Their cosine is 1, whatever can be perturbed: a direction is M ∇g."""
    policy = tanh_policy(Categorical(4))
    regularizer = replace(FRESH, directions=directions, **limits)
    sample = played(policy, regularizer)
    sample = replace(sample, earlier=Earlier(policy, sample.obs))
    metrics = evaluate(regularizer, sample).metrics
    assert metrics["direction_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["direction_cosine_min"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("regularizer", [ALONG, replace(ALONG, form="hinge", gain_bound=0.1)], ids=repr)
def test_means_are_over_the_attacked_rows(regularizer: AAJR) -> None:
    """λ, γ and the gains mean what they do where every row is attacked, or its directions are fresh."""
    policy = tanh_policy(Categorical(4))
    attacked = torch.tensor([True, False, False, True, False, True, False, False])
    part = evaluate(regularizer, played(policy, attacked=attacked))
    fresh = replace(regularizer, directions="fresh")
    alone = evaluate(fresh, sample_of(policy, rows=8).select(attacked.nonzero().squeeze(1)))
    torch.testing.assert_close(part.loss, alone.loss, rtol=1e-5, atol=0, check_dtype=False)
    for name in ("penalty", "gain_mean", "gain_max"):
        expected = alone.metrics[name].item()
        assert part.metrics[name].item() == pytest.approx(expected, rel=1e-5)
    assert part.metrics["attacked_minibatches"] == 1
    padded = replace(played(policy), mask=attacked)
    torch.testing.assert_close(evaluate(regularizer, padded).loss, part.loss)


def test_several_learners_take_the_mean_over_the_attacked_rows_of_all() -> None:
    policy = tanh_policy(Categorical(4))
    for share in ([True, False, True, True, False, False, False, False], [False] * 8):
        whole = played(policy, attacked=torch.tensor(share))
        answers = parts(whole, 2, lambda sample: evaluate(CONSTRAINT, sample))
        alone = evaluate(CONSTRAINT, whole)
        metrics = {name: value for name, value in alone.metrics.items() if "cosine" not in name}
        assert_average(answers, replace(alone, metrics=metrics), policy)


def test_the_dual_variable_stays_while_nobody_is_attacked() -> None:
    """λ ← λ + α (E‖J u‖² − γ²) needs E‖J u‖², which nobody knows then; 0 is no measurement of it."""
    policy, state = tanh_policy(Categorical(4)), CONSTRAINT.initial_state()
    nobody = played(policy, attacked=torch.zeros(8, dtype=torch.bool))
    for sample in (nobody, replace(nobody, path=None)):
        metrics = {k: float(v) for k, v in evaluate(CONSTRAINT, sample, state=state).metrics.items()}
        assert metrics["dual"] == 0.5
        assert metrics["penalty"] == metrics["attacked_minibatches"] == 0
        CONSTRAINT.after_update(state, metrics)
        assert state["dual"].item() == 0.5


def test_minibatches_without_attacked_rows_do_not_dilute_the_constraint() -> None:
    policy, state = tanh_policy(Categorical(4)), CONSTRAINT.initial_state()
    minibatches = [played(policy), played(policy, attacked=torch.zeros(8, dtype=torch.bool))]
    found = [evaluate(CONSTRAINT, sample, state=state).metrics for sample in minibatches]
    update = {k: sum(float(one[k]) for one in found) / 2 for k in ("penalty", "attacked_minibatches")}
    CONSTRAINT.after_update(state, update)
    expected = 0.5 + 0.01 * (found[0]["penalty"].item() - 0.1**2)
    assert state["dual"].item() == pytest.approx(expected)
    assert found[1]["direction_cosine_min"] == 1  # of no directions none is stale
