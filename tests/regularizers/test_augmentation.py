"""Training on perturbed observations: the adversary's, and noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.core.distributions import Categorical
from marl_aajr.regularizers import AAJR, AdversarialTraining, NoiseAugmentation, ppo_policy_loss
from tests.networks import generator, parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE: dict[str, Any] = {"sample_fraction": 1.0, "epsilon": 0.3}


@pytest.mark.parametrize("objective", ["kl", "surrogate"])
def test_adversarial_training_is_aajr_without_its_penalty(objective: str) -> None:
    policy = tanh_policy(Categorical(5))
    settings: dict[str, Any] = {"objective": objective, "adversarial_weight": 0.4, "dual_clip": 2.0, **WHOLE}
    alone = evaluate(AdversarialTraining(**settings), sample_of(policy))
    together = evaluate(AAJR(coefficient=0.0, **settings), sample_of(policy))
    torch.testing.assert_close(alone.loss, together.loss)
    for key in ("ratio_min", "ratio_max", "objective_gain"):
        torch.testing.assert_close(alone.metrics[key], together.metrics[key])
    found = [gradients(evaluation, parameters(policy)) for evaluation in (alone, together)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_adversary_of_training_raises_the_loss_more_than_noise_does() -> None:
    sample = sample_of(tanh_policy(Categorical(5)), rows=200)
    adversary = evaluate(AdversarialTraining(**WHOLE), sample).metrics["loss_difference"]
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


@pytest.mark.parametrize("method", [AdversarialTraining, NoiseAugmentation])
def test_they_need_a_policy_loss(method: Any) -> None:
    with pytest.raises(ValueError, match=f"with policy loss for {method.name}, got advantages"):
        method().check(Categorical(3), offers={"advantages"})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (AdversarialTraining, {"adversarial_weight": 2}, r"expected adversarial_weight in \[0, 1\], got 2"),
        (NoiseAugmentation, {"noise_weight": 2}, r"expected noise_weight in \[0, 1\], got 2"),
        (AdversarialTraining, {"dual_clip": 0.5}, "expected a dual_clip > 1, got 0.5"),
    ],
)
def test_bad_settings_are_refused(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**settings)
