"""The learner's policy loss at perturbed observations, mixed with the clean one.

    (1 − κ) · ℓ(s) + κ · ℓ(s + sg[δ])

For Â < 0 PPO's clipped loss is unbounded in the ratio r = π(a|s + δ)/π_old(a|s), which an adversary can drive
far from 1; the dual clip of Ye 2020 (arXiv 1912.09729) bounds it: ℓ ≤ −c · Â. For Â > 0 the
gradient dies as r goes to 0. So the ratio's range is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from marl_aajr.core.values import Schedule, maximum
from marl_aajr.regularizers.base import Sample


@dataclass(frozen=True)
class PerturbedLoss:
    """ℓ(s + δ) − ℓ(s): weighted by κ and added to ℓ(s), it mixes the two.

    Attributes:
        difference: mean over the rows that count, a scalar with its graph.
        metrics: `ratio_min` and `ratio_max`; empty where the learner keeps no old log-probabilities.
    """

    difference: Tensor
    metrics: dict[str, Tensor]


def perturbed_loss(sample: Sample, delta: Tensor, *, dual_clip: float | None = None) -> PerturbedLoss:
    """The policy loss at s + δ against that at s.

    Args:
        sample: the minibatch.
        delta: δ, `[B, ..., d]`; a constant.
        dual_clip: c > 1, for Â < 0; None: no bound.

    Raises:
        ValueError: a learner without a policy loss, or without advantages for the dual clip.
    """
    if sample.policy_loss is None:
        raise ValueError(
            "expected a learner with a policy loss for adversarial_weight > 0, got one without; "
            "set adversarial_weight=0"
        )
    outputs = sample.policy(sample.obs + delta)
    loss = sample.policy_loss(outputs, sample)
    if dual_clip is not None:
        loss = _dual_clipped(loss, sample.advantages, dual_clip)
    difference = loss - sample.policy_loss(sample.outputs, sample)
    return PerturbedLoss(sample.mean(difference), _ratio_metrics(sample, outputs.detach()))


def _dual_clipped(loss: Tensor, advantages: Tensor | None, clip: float) -> Tensor:
    if advantages is None:
        raise ValueError("expected a batch with advantages for dual_clip, got one without; remove it")
    return torch.where(advantages < 0, torch.minimum(loss, -clip * advantages), loss)


def _ratio_metrics(sample: Sample, outputs: Tensor) -> dict[str, Tensor]:
    if sample.actions is None or sample.log_probs is None:
        return {}
    log_probs = sample.policy.distribution.log_prob(outputs, sample.actions)
    ratio = (log_probs - sample.log_probs).exp()
    if sample.mask is not None:  # 1 is the ratio of a policy that has not moved
        ratio = torch.where(sample.mask, ratio, 1.0)
    return {"ratio_min": ratio.amin(), "ratio_max": ratio.amax()}


def check_dual_clip(dual_clip: float | None, weight: Schedule) -> None:
    """Raise `ValueError` for a bound ≤ 1, or one of a loss that is not there."""
    if dual_clip is None:
        return
    if isinstance(dual_clip, bool) or not (isfinite(dual_clip) and dual_clip > 1):
        raise ValueError(f"expected a dual_clip > 1, got {dual_clip!r}")
    if maximum(weight) == 0:
        raise ValueError(
            f"expected no dual_clip with adversarial_weight=0, which has no loss to bound, got {dual_clip!r}"
        )
