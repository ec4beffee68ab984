"""MACER: its radius is the distance to the boundary where that is known, its equation and its gradient."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import MACER, Sample
from tests.networks import DISTRIBUTIONS, generator, linear_policy, observations, parameters, tanh_policy
from tests.regularizers.samples import evaluate, sample_of

WHOLE: dict[str, Any] = {"coefficient": 1.0, "sample_fraction": 1.0}
SMALL = MACER(sigma=0.5, samples=4, beta=2.0, **WHOLE)


def hard(**settings: Any) -> MACER:
    """Votes that are almost hard, so many that their shares are almost probabilities."""
    return MACER(samples=20_000, beta=1e4, **WHOLE, **settings)


def radius(policy: ModulePolicy, obs: list[float], regularizer: MACER) -> float:
    row = torch.tensor([obs], dtype=torch.float64)
    evaluation = evaluate(regularizer, Sample(policy, row, policy(row)))
    return evaluation.metrics["radius"].item()


LINES = linear_policy(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
"""Two actions, with the boundary 3 x + 4 y = 0."""


@pytest.mark.parametrize("obs", [[0.1, 0.05], [-0.1, -0.05]])
def test_its_radius_between_two_actions_is_the_distance_to_the_line_between_them(obs: list[float]) -> None:
    """f_a − f_b = w·s: ẑ = Φ(w·s / σ‖w‖), and σ/2 · 2 Φ⁻¹(ẑ) = w·s / ‖w‖."""
    assert radius(LINES, obs, hard(sigma=0.2)) == pytest.approx(0.5 / 5, rel=0.03)


def test_noise_keeps_to_the_features_and_their_units() -> None:
    """Without noise on x the boundary is 0.5 / 4 away, with y in units of 2 half as far in these."""
    assert radius(LINES, [0.1, 0.05], hard(sigma=0.2, mask=(False, True))) == pytest.approx(0.125, rel=0.03)
    found = radius(LINES, [0.1, 0.05], hard(sigma=0.1, mask=(False, True), scale=(1.0, 2.0)))
    assert found == pytest.approx(0.0625, rel=0.03)


def test_the_radius_of_a_mean_is_how_far_it_is_from_moving_by_its_standard_deviation() -> None:
    """μ = 2 s: |Δs| = exp(log σ) / 2."""
    rows = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    policy = linear_policy(rows, DiagGaussian(1), torch.tensor([0.3, -1.0], dtype=torch.float64))
    assert radius(policy, [0.7], hard(sigma=0.2)) == pytest.approx(exp(-1.0) / 2, rel=0.03)


def test_a_choice_that_the_vote_does_not_make_has_no_term() -> None:
    row = torch.tensor([[0.1, 0.05]], dtype=torch.float64)
    taken = Sample(LINES, row, LINES(row), actions=torch.tensor([1]))
    evaluation = evaluate(replace(hard(sigma=0.1), choice="taken"), taken)
    assert evaluation.loss.item() == 0
    assert evaluation.metrics["other_choice_fraction"] == 1
    assert evaluate(hard(sigma=0.1), taken).loss.item() > 0
    assert evaluate(hard(sigma=0.1, gamma=1.9), taken).loss.item() == 0  # its ξ is 2


def written_out(regularizer: MACER, sample: Sample, outputs: list[Tensor]) -> Tensor:
    """The equation, row by row, with `outputs` at the noisy observations."""
    distribution, normal = sample.policy.distribution, torch.distributions.Normal(0.0, 1.0)
    total = torch.zeros((), dtype=torch.float64)
    for row, clean in enumerate(sample.outputs.detach()):
        noisy = [each[row] for each in outputs]
        differences = []
        if isinstance(distribution, DiagGaussian):
            mean, log_std = distribution.split(clean)
            for i, (centre, std) in enumerate(zip(mean, log_std.exp(), strict=True)):
                for sign in (-1, 1):
                    room = torch.stack([1 + sign * (each[i] - centre) / std for each in noisy])
                    differences.append(2 * normal.icdf((regularizer.beta * room).sigmoid().mean()))
        else:
            sizes = list(distribution.nvec) if isinstance(distribution, MultiCategorical) else [len(clean)]
            parts = zip(*(each.split(sizes) for each in noisy), strict=True)
            for logits, several in zip(clean.split(sizes), parts, strict=True):
                votes = torch.stack([(regularizer.beta * each).softmax(-1) for each in several]).mean(0)
                best = int(logits.argmax())
                other = torch.stack([vote for a, vote in enumerate(votes) if a != best]).max()
                differences.append(normal.icdf(votes[best]) - normal.icdf(other))
        least = torch.stack(differences).min()
        if least >= 0:
            total = total + regularizer.sigma / 2 * (regularizer.gamma - least).clamp_min(0)  # type: ignore[operator]
    return total / len(sample.outputs)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_it_is_its_equation_and_its_gradient_that_of_finite_differences(
    distribution: ActionDistribution,
) -> None:
    policy = tanh_policy(distribution)
    sample = sample_of(policy)
    noise = torch.empty(len(sample.obs), 4, 6, dtype=torch.float64).normal_(generator=generator())

    evaluation = evaluate(SMALL, sample)
    expected = written_out(SMALL, sample, [policy(sample.obs + 0.5 * noise[:, j]) for j in range(4)])
    torch.testing.assert_close(evaluation.loss, expected)

    weight = parameters(policy)[0]
    (gradient,) = torch.autograd.grad(evaluation.loss, weight)
    direction = observations(*weight.shape, seed=3)

    def moved(by: float) -> Tensor:
        weight.data.add_(by * direction)
        # A choice may not move with the weights: what is clean is a constant.
        loss = evaluate(SMALL, replace(sample, outputs=sample.outputs.detach())).loss.detach()
        weight.data.sub_(by * direction)
        return loss

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-8)
    assert gradient.abs().sum() > 0


def test_a_forbidden_action_has_no_votes() -> None:
    policy = tanh_policy(Categorical(3))
    logits = torch.tensor([[0.0, 0.5, torch.finfo(torch.float32).min]])
    noisy = logits.repeat(4, 1, 1).requires_grad_()
    found = SMALL.difference(policy.distribution, logits, torch.tensor([1]), noisy)
    alone = SMALL.difference(Categorical(2), logits[:, :2], torch.tensor([1]), noisy[..., :2])
    torch.testing.assert_close(found, alone)
    found.sum().backward()
    assert noisy.grad is not None
    assert noisy.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": 0}, "expected a sigma > 0"),
        ({"sigma": [[0, 0.1], [10, 0.0]]}, "expected a sigma > 0"),
        ({"samples": 0}, "samples"),
        ({"beta": 0}, "expected a beta > 0"),
        ({"gamma": float("inf")}, "expected a gamma > 0"),
        ({"choice": "best"}, "expected choice out of greedy, taken"),
        ({"mask": [False]}, "expected a mask that leaves"),
        ({"scale": [0.0]}, "expected scales > 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MACER(**settings)
