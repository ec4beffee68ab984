"""Distributions agree with torch.distributions; the Fisher metric is the curvature of KL."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from marl_aajr.core.distributions import (
    MASKED_LOGIT,
    ActionDistribution,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    from_space,
    logit_scale,
)
from tests.networks import DISTRIBUTIONS, generator


def reference(distribution: ActionDistribution, inputs: Tensor) -> list[td.Distribution]:
    if isinstance(distribution, Categorical):
        return [td.Categorical(logits=inputs)]
    if isinstance(distribution, MultiCategorical):
        return [td.Categorical(logits=y) for y in distribution.split(inputs)]
    assert isinstance(distribution, DiagGaussian)
    mean, log_std = distribution.split(inputs)
    return [td.Independent(td.Normal(mean, log_std.exp()), 1)]


def inputs_of(distribution: ActionDistribution, seed: int) -> Tensor:
    return torch.randn(9, distribution.num_inputs, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_log_prob_kl_and_entropy_equal_torchs(distribution: ActionDistribution) -> None:
    inputs, other = inputs_of(distribution, 0), inputs_of(distribution, 1)
    p, q = reference(distribution, inputs), reference(distribution, other)
    actions = distribution.sample(inputs, generator=generator())
    parts = actions.unbind(-1) if isinstance(distribution, MultiCategorical) else [actions]

    log_prob = sum(d.log_prob(a) for d, a in zip(p, parts, strict=True))
    kl = sum(td.kl_divergence(a, b) for a, b in zip(p, q, strict=True))
    entropy = sum(d.entropy() for d in p)
    torch.testing.assert_close(distribution.log_prob(inputs, actions), log_prob)
    torch.testing.assert_close(distribution.kl(inputs, other), kl)
    torch.testing.assert_close(distribution.entropy(inputs), entropy)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_the_slope_of_kl_is_its_derivative(distribution: ActionDistribution) -> None:
    inputs, other = inputs_of(distribution, 0), inputs_of(distribution, 1).requires_grad_(True)
    kl = distribution.kl(inputs, other)
    (expected,) = torch.autograd.grad(kl.sum(), other)
    value, slope = distribution.kl_from(inputs).value_and_gradient(other.detach())
    torch.testing.assert_close(value, kl.detach())
    torch.testing.assert_close(slope, expected)


def test_masked_actions_add_nothing_to_kl_or_its_slope() -> None:
    for mask in (torch.finfo(torch.float32).min, -torch.inf):
        p, q = torch.tensor([1.0, 2.0, mask]), torch.tensor([0.5, 2.5, mask])
        value, slope = Categorical(3).kl_from(p).value_and_gradient(q)
        torch.testing.assert_close(value, Categorical(2).kl(p[:2], q[:2]))
        torch.testing.assert_close(slope[:2], Categorical(2).kl_from(p[:2]).value_and_gradient(q[:2])[1])
        assert slope[2] == 0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_fisher_is_the_curvature_of_kl(distribution: ActionDistribution) -> None:
    """KL(y ‖ y + h t) = ½ h² tᵀFt + O(h³): halving h divides the remainder by eight."""
    inputs, tangent = inputs_of(distribution, 0), inputs_of(distribution, 1)
    remainders = []
    for h in (2e-2, 1e-2):
        kl = distribution.kl(inputs, inputs + h * tangent)
        remainders.append((kl - 0.5 * h**2 * distribution.fisher(inputs, tangent)).abs())
    ratio = remainders[0].sum() / remainders[1].sum()
    assert 7 < ratio < 9


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_samples_have_the_distributions_statistics(distribution: ActionDistribution) -> None:
    inputs = inputs_of(distribution, 3)[:1].expand(40_000, -1)
    actions = distribution.sample(inputs, generator=generator())
    again = distribution.sample(inputs, generator=generator())
    assert torch.equal(actions, again)
    torch.testing.assert_close(
        -distribution.log_prob(inputs, actions).mean(),
        distribution.entropy(inputs).mean(),
        atol=0.02,
        rtol=0,
    )


def test_masked_actions_are_absent() -> None:
    """RLlib masks by adding float32's minimum: no NaN, no probability, no sensitivity."""
    distribution = Categorical(3)
    logits = torch.tensor([[1.0, 0.5, -0.5]])
    masked = logits + torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min])
    assert masked[0, 2] < MASKED_LOGIT
    two, tangent = Categorical(2), torch.tensor([[0.3, -0.2, 50.0]])
    for value, expected in (
        (distribution.kl(masked, masked + tangent), two.kl(logits[:, :2], (logits + tangent)[:, :2])),
        (distribution.entropy(masked), two.entropy(logits[:, :2])),
        (distribution.fisher(masked, tangent), two.fisher(logits[:, :2], tangent[:, :2])),
    ):
        torch.testing.assert_close(value, expected)
    actions = distribution.sample(masked.expand(1000, -1), generator=generator())
    assert actions.max() < 2


def test_kl_of_masked_logits_has_a_finite_gradient() -> None:
    logits = torch.tensor([[1.0, 0.5, torch.finfo(torch.float32).min]])
    other = (logits + torch.tensor([[0.1, -0.1, 0.0]])).requires_grad_(True)
    Categorical(3).kl(logits, other).sum().backward()
    assert other.grad is not None
    assert other.grad.isfinite().all()


def test_the_logit_scale_is_the_spread_of_legal_logits() -> None:
    """It has nothing of their mean, which changes no probability."""
    logits = torch.tensor([[5.0, 7.0, torch.finfo(torch.float32).min, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0, 4.0]])
    scale = logit_scale(MultiCategorical((3, 2)), logits)
    assert scale is not None
    assert scale.item() == pytest.approx(((1 + 1 + 0 + 0 + 0 + 0 + 0 + 1 + 1) / 9) ** 0.5)
    twice = logit_scale(Categorical(5), 2 * logits[1:])
    assert twice is not None
    assert twice.item() == pytest.approx(2 * logits[1].std(correction=0).item())
    assert logit_scale(DiagGaussian(1), torch.ones(4, 2)) is None


def test_spaces_map_to_their_distributions() -> None:
    assert from_space(gym.spaces.Discrete(4)) == Categorical(4)
    assert from_space(gym.spaces.MultiDiscrete([2, 3])) == MultiCategorical((2, 3))
    assert from_space(gym.spaces.MultiBinary(3)) == MultiCategorical((2, 2, 2))
    assert from_space(gym.spaces.Box(-1, 1, (2,))) == DiagGaussian(2)
    with pytest.raises(
        ValueError, match="expected a Discrete, MultiDiscrete, MultiBinary or one-dimensional"
    ):
        from_space(gym.spaces.Box(-1, 1, (2, 2)))
