"""The policy loss at perturbed observations, without any penalty.

(1 − κ) · ℓ(s) + κ · ℓ(s + δ),   δ the adversary's, or noise
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.numerics import check_finite
from marl_aajr.core.objectives import EVERYTHING, Need, ObjectiveLike
from marl_aajr.core.values import Schedule, value_at
from marl_aajr.regularizers.adversarial import (
    Perturbing,
    Targeted,
    nonfinite,
    require,
    share,
    trajectory_metrics,
)
from marl_aajr.regularizers.base import Evaluation, Sample, State
from marl_aajr.regularizers.perturbed_loss import check_dual_clip, perturbed_loss


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Targeted):
    """Train on what the adversary makes of the observation: AAJR with κ alone.

    Attributes:
        adversarial_weight: κ in [0, 1], share of the policy loss taken at s + δ_K; a number or schedule.
        dual_clip: c > 1 bounds the adversarial loss of rows with Â < 0 (Ye 2020); None: no bound.

    Source: Madry 2018 (arXiv 1706.06083) with the policy loss for the loss, hence `"surrogate"`.
    """

    name: ClassVar[str] = "adversarial_training"
    summary: ClassVar[str] = "policy loss at adversarially perturbed observations (Madry 2018)"
    weights: ClassVar[tuple[str, ...]] = ("adversarial_weight",)

    adversarial_weight: Schedule = 0.5
    dual_clip: float | None = None
    objective: ObjectiveLike = "surrogate"

    def __post_init__(self) -> None:
        super().__post_init__()
        share("adversarial_weight", self.adversarial_weight)
        check_dual_clip(self.dual_clip, self.adversarial_weight)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        require({"policy_loss"}, offers, self.name)

    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        check: bool = False,
    ) -> Evaluation:
        sample = self.drawn(sample, generator, check=check)
        trajectory = self.climb(sample, timestep=timestep, generator=generator, check=check)
        perturbed = perturbed_loss(sample, trajectory.deltas[-1], dual_clip=self.dual_clip)
        loss = value_at(self.adversarial_weight, timestep) * perturbed.difference
        if check:
            check_finite("the adversarial policy loss", loss)
        metrics = {"loss_difference": perturbed.difference.detach(), **perturbed.metrics}
        return Evaluation(loss, metrics | trajectory_metrics(sample, trajectory, loss))


@dataclass(frozen=True, kw_only=True)
class NoiseAugmentation(Perturbing):
    """Train on noisy observations: the control for every method that perturbs them with a purpose.

    Attributes:
        noise_weight: share of the policy loss taken at s + noise, in [0, 1]; a number or schedule. The noise
            is uniform in the perturbation set.
    """

    name: ClassVar[str] = "noise_augmentation"
    summary: ClassVar[str] = "policy loss at observations with uniform noise (ablation of the adversary)"
    weights: ClassVar[tuple[str, ...]] = ("noise_weight",)

    noise_weight: Schedule = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share("noise_weight", self.noise_weight)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        require({"policy_loss"}, offers, self.name)

    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        check: bool = False,
    ) -> Evaluation:
        sample = self.drawn(sample, generator, check=check)
        perturbations = self.perturbations(timestep)

        def draw(obs: Tensor) -> Tensor:
            return perturbations.sample(obs, generator=generator)

        perturbed = perturbed_loss(sample, sample.draw(draw))
        loss = value_at(self.noise_weight, timestep) * perturbed.difference
        if check:
            check_finite("the policy loss at noisy observations", loss)
        metrics = {"loss_difference": perturbed.difference.detach(), **perturbed.metrics}
        return Evaluation(loss, metrics | {"nonfinite": nonfinite(loss.detach())})
