"""The policy loss at perturbed observations, off-policy: AAJR's κ, and noise as its control.

    (1 − κ) · ℓ(s) + κ · ℓ(s + sg[δ])        δ the adversary's, or noise

For Â < 0 PPO's clipped loss is unbounded in the ratio r = π(a|s + δ)/π_old(a|s), which an adversary can drive
far from 1; the dual clip of Ye 2020 (arXiv 1912.09729) bounds it: ℓ ≤ −c · Â. For Â > 0 the
gradient dies as r goes to 0. So the ratio's range is reported.

An action that was drawn at s says little of the policy at s + δ, and policies unlearn by this loss: the fault
that Raileanu et al. 2021 (DrAC, arXiv 2006.12862) found with augmented observations in PPO. Playing under
attack has it not (`marl_aajr.rollout.attack`). This stays for comparison, and is nobody's default.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.core.checks import Schedule, value_at
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.objectives import EVERYTHING, Need, Objective, ObjectiveLike, make_objective
from marl_aajr.regularizers.adversarial import (
    Adversarial,
    Perturbing,
    check_adversarial_loss,
    check_share,
    require,
    trajectory_metrics,
)
from marl_aajr.regularizers.sample import Context, LossTerm, Sample


def perturbed_loss(sample: Sample, delta: Tensor, *, dual_clip: float | None = None) -> LossTerm:
    """ℓ(s + δ) − ℓ(s), the mean over the rows that count: κ times this, added to ℓ(s), mixes the two.

    Args:
        sample: the minibatch.
        delta: δ, `[B, ..., d]`; a constant.
        dual_clip: c > 1, for Â < 0; None: no bound.

    Returns:
        The difference, with `ratio_min` and `ratio_max` where the learner keeps old log-probabilities.

    Raises:
        ValueError: a learner without a policy loss, or without advantages for the dual clip.
    """
    if sample.policy_loss is None:
        raise ValueError(
            "expected a learner with a policy loss for adversarial_weight > 0, got one without; "
            "set adversarial_weight=0"
        )
    outputs = sample.policy.once(sample.obs + delta)
    loss = sample.policy_loss(outputs, sample)
    if dual_clip is not None:
        if sample.advantages is None:
            raise ValueError("expected a batch with advantages for dual_clip, got one without; remove it")
        bounded = torch.minimum(loss, -dual_clip * sample.advantages)
        loss = torch.where(sample.advantages < 0, bounded, loss)
    difference = loss - sample.policy_loss(sample.outputs, sample)
    return LossTerm(sample.mean(difference), _ratio_metrics(sample, outputs.detach()))


def _ratio_metrics(sample: Sample, outputs: Tensor) -> dict[str, Tensor]:
    if sample.actions is None or sample.log_probs is None:
        return {}
    log_probs = sample.policy.distribution.log_prob(outputs, sample.actions)
    ratio = (log_probs - sample.log_probs).exp()
    if sample.mask is not None:  # 1 is the ratio of a policy that has not moved
        ratio = torch.where(sample.mask, ratio, 1.0)
    return {"ratio_min": ratio.amin(), "ratio_max": ratio.amax()}


@dataclass(frozen=True, kw_only=True)
class OffPolicyAdversarialTraining(Adversarial):
    """Take the policy loss at what an adversary makes of the observation: AAJR with κ alone.

    Policies unlearn by it; see the module's documentation, and `adversarial_training` for what works.

    Attributes:
        adversarial_weight: κ in [0, 1], share of the policy loss taken at the perturbed observation s + δ_K;
            a number or a schedule.
        dual_clip: c > 1, bound on the adversarial loss of rows with Â < 0 (Ye 2020); None: no bound.
        objective: quantity that the inner adversary maximises: `"kl"`, `"surrogate"`, `"margin"` or
            `"value"`. In Python also a function `(outputs [B, ..., m], clean) -> [B, ...]`.

    Source: Madry 2018 (arXiv 1706.06083) with the policy loss for the loss, hence `"surrogate"`.
    """

    name: ClassVar[str] = "off_policy_adversarial_training"
    summary: ClassVar[str] = "policy loss at perturbed observations nobody acted on; unlearns (see DrAC 2021)"
    weights: ClassVar[tuple[str, ...]] = ("adversarial_weight",)

    adversarial_weight: Schedule = 0.5
    dual_clip: float | None = None
    objective: ObjectiveLike = "surrogate"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adversarial_loss(self.adversarial_weight, self.dual_clip)

    @property
    def perturbs_loss(self) -> bool:
        return True

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        require({"policy_loss"}, offers, self.name)

    @property
    def adversary(self) -> Objective:
        return make_objective(self.objective)

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        trajectory = self.attack(sample, context)
        perturbed = perturbed_loss(sample, trajectory.deltas[-1], dual_clip=self.dual_clip)
        term = _weighted(perturbed, self.adversarial_weight, context)
        return LossTerm(
            term.loss, {**term.metrics, **trajectory_metrics(sample, trajectory, term.loss, context)}
        )


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
        check_share("noise_weight", self.noise_weight)

    @property
    def perturbs_loss(self) -> bool:
        return True

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        require({"policy_loss"}, offers, self.name)

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        draw = partial(self.around(sample, context.timestep).sample, generator=context.generator)
        return _weighted(perturbed_loss(sample, sample.draw(draw)), self.noise_weight, context)


def _weighted(perturbed: LossTerm, weight: Schedule, context: Context) -> LossTerm:
    loss = value_at(weight, context.timestep) * perturbed.loss
    context.check_finite("the policy loss at perturbed observations", loss)
    return LossTerm(loss, {"loss_difference": perturbed.loss.detach(), **perturbed.metrics})
