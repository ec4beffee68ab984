"""The policy loss at perturbed observations, the adversary's or noisy: how it is mixed, bounded, reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import KL
from marl_aajr.regularizers import (
    AAJR,
    NoiseAugmentation,
    OffPolicyAdversarialTraining,
    Sample,
    ppo_policy_loss,
)
from marl_aajr.regularizers.augmentation import perturbed_loss
from tests.networks import generator, linear_policy, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"sample_fraction": 1.0, "epsilon": 0.3}
AAJR_WHOLE = AAJR(coefficient=1.0, **WHOLE)


@pytest.mark.parametrize("objective", ["kl", "surrogate"])
def test_adversarial_training_is_aajr_without_its_penalty(objective: str) -> None:
    policy = tanh_policy(Categorical(5))
    settings: dict[str, Any] = {"objective": objective, "adversarial_weight": 0.4, "dual_clip": 2.0, **WHOLE}
    alone = evaluate(OffPolicyAdversarialTraining(**settings), sample_of(policy))
    together = evaluate(AAJR(coefficient=0.0, **settings), sample_of(policy))
    torch.testing.assert_close(alone.loss, together.loss)
    for key in ("ratio_min", "ratio_max", "objective_gain"):
        torch.testing.assert_close(alone.metrics[key], together.metrics[key])
    found = [gradients(evaluation, parameters(policy)) for evaluation in (alone, together)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_adversary_of_training_raises_the_loss_more_than_noise_does() -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=200)
    adversary = evaluate(OffPolicyAdversarialTraining(**WHOLE), sample).metrics["loss_difference"]
    noise = evaluate(NoiseAugmentation(**WHOLE), sample).metrics["loss_difference"]
    assert adversary > 2 * noise.abs()


def test_noise_augmentation_mixes_in_the_loss_at_noisy_observations() -> None:
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    regularizer = NoiseAugmentation(noise_weight=0.25, **WHOLE)
    noise = regularizer.perturbations(0).sample(sample.obs, generator=generator())
    loss = ppo_policy_loss(0.2)
    clean, noisy = (loss(policy(obs), sample).mean() for obs in (sample.obs, sample.obs + noise))
    torch.testing.assert_close(clean + evaluate(regularizer, sample).loss, 0.75 * clean + 0.25 * noisy)


@pytest.mark.parametrize("method", [OffPolicyAdversarialTraining, NoiseAugmentation])
def test_they_need_a_policy_loss(method: Any) -> None:
    with pytest.raises(ValueError, match=f"with policy loss for {method.name}, got advantages"):
        method().check(Categorical(3), offers={"advantages"})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            OffPolicyAdversarialTraining,
            {"adversarial_weight": 2},
            r"expected adversarial_weight in \[0, 1\], got 2",
        ),
        (NoiseAugmentation, {"noise_weight": 2}, r"expected noise_weight in \[0, 1\], got 2"),
        (OffPolicyAdversarialTraining, {"dual_clip": 0.5}, "expected a dual_clip > 1, got 0.5"),
    ],
)
def test_bad_settings_are_refused(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**settings)


def bandit(ratios: list[float], advantages: list[float]) -> Sample:
    """Two actions at even odds, whatever is observed: the ratio is what π_old makes it."""
    policy = linear_policy(torch.zeros(2, 1, dtype=torch.float64))
    r = torch.tensor(ratios, dtype=torch.float64)
    return Sample(
        policy,
        torch.zeros(len(ratios), 1, dtype=torch.float64),
        torch.zeros(len(ratios), 2, dtype=torch.float64),
        actions=torch.zeros(len(ratios), dtype=torch.long),
        log_probs=torch.tensor(0.5, dtype=torch.float64).log() - r.log(),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        policy_loss=ppo_policy_loss(0.2),
    )


@pytest.mark.parametrize("kappa", [0.25, 1.0])
def test_adversarial_weight_mixes_the_policy_loss(kappa: float) -> None:
    """ℓ(s) + added = (1 − κ) ℓ(s) + κ ℓ(s + δ_K)."""
    policy = tanh_policy(Categorical(5))
    sample = sample_of(policy)
    regularizer = replace(AAJR_WHOLE, coefficient=0.0, adversarial_weight=kappa)
    evaluation = evaluate(regularizer, sample)
    trajectory = ascend(
        policy,
        sample.obs,
        KL(),
        regularizer.perturbations(0),
        steps=3,
        step_size=0.15,
        generator=generator(),
    )
    loss = ppo_policy_loss(0.2)
    clean = loss(sample.outputs, sample).mean()
    adversarial = loss(policy(sample.obs + trajectory.deltas[-1]), sample).mean()
    torch.testing.assert_close(clean + evaluation.loss, (1 - kappa) * clean + kappa * adversarial)


def test_ppo_policy_loss_is_the_clipped_surrogate() -> None:
    """Hand-computed: ratios 1.5 and 0.5 at clip 0.2, both signs of the advantage."""
    sample = bandit([1.5, 1.5, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    expected = torch.tensor([-1.2, 1.5, -0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(ppo_policy_loss(0.2)(sample.outputs, sample), expected)


def test_the_dual_clip_bounds_the_loss_of_bad_actions_alone() -> None:
    """Ye 2020: for Â < 0 the loss is at most −c Â; here ratios 10 and 2, c = 3, Â = ±1, and δ = 0."""
    sample = bandit([10.0, 2.0, 10.0], [-1.0, -1.0, 1.0])
    assert sample.policy_loss is not None
    clean = sample.policy_loss(sample.outputs, sample)
    assert clean.tolist() == pytest.approx([10.0, 2.0, -1.2])
    clipped = perturbed_loss(sample, torch.zeros_like(sample.obs), dual_clip=3.0)
    assert clipped.loss.item() == pytest.approx((3.0 - 10.0) / 3)
    unbounded = perturbed_loss(sample, torch.zeros_like(sample.obs))
    assert unbounded.loss.item() == pytest.approx(0)


def test_the_range_of_the_ratio_is_reported() -> None:
    sample = bandit([10.0, 0.5, 3.0], [-1.0, -1.0, 1.0])
    metrics = perturbed_loss(sample, torch.zeros_like(sample.obs)).metrics
    assert metrics["ratio_min"].item() == pytest.approx(0.5)
    assert metrics["ratio_max"].item() == pytest.approx(10.0)
    masked = replace(sample, mask=torch.tensor([False, True, True]))
    assert perturbed_loss(masked, torch.zeros_like(sample.obs)).metrics["ratio_max"].item() == pytest.approx(
        3.0
    )
    assert (
        perturbed_loss(
            replace(sample, log_probs=None, policy_loss=lambda y, s: y[..., 0]), sample.obs
        ).metrics
        == {}
    )


def test_aajr_applies_the_dual_clip_and_reports_the_ratio() -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    assert sample.log_probs is not None
    sample = replace(sample, log_probs=sample.log_probs - 3)  # ratios of about 20
    losses = [
        evaluate(replace(AAJR_WHOLE, adversarial_weight=1.0, coefficient=0.0, dual_clip=clip), sample)
        for clip in (None, 2.0)
    ]
    assert losses[1].loss < losses[0].loss - 1
    assert losses[0].metrics["ratio_max"] > 10


def test_an_adversarial_loss_needs_a_policy_loss() -> None:
    policy = tanh_policy(Categorical(5))
    sample = replace(sample_of(policy), policy_loss=None)
    with pytest.raises(ValueError, match="set adversarial_weight=0"):
        evaluate(replace(AAJR_WHOLE, adversarial_weight=0.5), sample)
    bare = replace(sample_of(policy), advantages=None, policy_loss=lambda outputs, sample: outputs[..., 0])
    with pytest.raises(ValueError, match="expected a batch with advantages for dual_clip"):
        evaluate(replace(AAJR_WHOLE, adversarial_weight=0.5, dual_clip=2.0), bare)
