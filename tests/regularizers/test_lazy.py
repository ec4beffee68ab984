"""Lazy regularization: fewer evaluations on more rows, and the same in expectation."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from marl_aajr.core.distributions import Categorical
from marl_aajr.regularizers import AAJR, Regularizer, Sample, SmoothPolicy, make_regularizer
from tests.networks import generator, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE = AAJR(coefficient=1.0, sample_fraction=1.0, points="all", objective="surrogate", epsilon=0.3)


def counted(regularizer: Regularizer, sample: Sample, minibatch: int, seed: int = 0) -> torch.Tensor:
    return regularizer.evaluate(
        sample, timestep=0, generator=generator(seed), minibatch=minibatch
    ).loss.detach()


@pytest.mark.parametrize(
    ("share", "interval", "every"),
    [(0.1, None, 10), (1.0, None, 1), (0.3, None, 3), (0.1, 1, 1), (1.0, 4, 4)],
)
def test_the_interval_follows_the_share_unless_it_is_given(share: float, interval: Any, every: int) -> None:
    regularizer = AAJR(sample_fraction=share, interval=interval)
    assert regularizer.every == every
    assert [t for t in range(25) if regularizer.due(0, t)] == list(range(0, 25, every))


@pytest.mark.parametrize("name", ["off_policy_adversarial_training", "noise_augmentation", "aajr"])
def test_a_policy_loss_at_perturbed_observations_is_taken_in_every_minibatch(name: str) -> None:
    kappa = {"adversarial_weight": 0.5} if name == "aajr" else {}
    assert make_regularizer(name, **kappa).every == 1


def test_the_mean_over_an_interval_is_the_term_of_every_minibatch() -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=20)
    lazy = replace(WHOLE, sample_fraction=0.25)
    terms = [counted(lazy, sample, t) if lazy.due(0, t) else torch.zeros(()) for t in range(8)]
    torch.testing.assert_close(torch.stack(terms).mean(), evaluate(WHOLE, sample).loss.detach())


def test_gradient_of_a_regularised_minibatch_has_the_weight_of_those_left_out() -> None:
    policy = tanh_policy(Categorical(5))
    sample, parameters = sample_of(policy, rows=20), list(policy.module.parameters())  # type: ignore[attr-defined]
    whole = gradients(evaluate(WHOLE, sample), parameters)
    lazy = replace(WHOLE, interval=3).evaluate(sample, timestep=0, generator=generator(), minibatch=6)
    torch.testing.assert_close(gradients(lazy, parameters), tuple(3 * gradient for gradient in whole))


@pytest.mark.parametrize(
    "drawn",
    [{"points": "one"}, {"points": "one", "sample_fraction": 0.5, "interval": 1}],
    ids=["point", "rows"],
)
def test_the_expectation_over_points_and_rows_is_the_mean_over_all_of_them(drawn: dict[str, Any]) -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=20)
    terms = [float(counted(replace(WHOLE, **drawn), sample, 0, seed)) for seed in range(200)]
    assert stdev(terms) > 0
    error = stdev(terms) / sqrt(len(terms))
    assert abs(mean(terms) - float(evaluate(WHOLE, sample).loss)) < 3 * error


def test_a_loop_that_counts_no_minibatches_gets_the_share_with_its_own_weight() -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=20)
    share = replace(WHOLE, sample_fraction=0.25)
    assert evaluate(share, sample).loss == evaluate(replace(share, interval=1), sample).loss


def test_members_of_a_sum_have_intervals_of_their_own() -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=20)
    first, second = replace(WHOLE, interval=2), SmoothPolicy(sample_fraction=1.0, interval=3)
    both = first + second
    assert [t for t in range(7) if both.due(0, t)] == [0, 2, 3, 4, 6]
    metrics = [both.evaluate(sample, timestep=0, generator=generator(), minibatch=t).metrics for t in (2, 3)]
    assert ["aajr/penalty" in found for found in metrics] == [True, False]
    torch.testing.assert_close(counted(both, sample, 2), counted(first, sample, 2))


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_an_interval_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(ValueError, match="interval"):
        AAJR(interval=wrong)
