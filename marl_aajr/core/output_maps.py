"""Output maps φ: the output whose sensitivity counts, as ‖J_φ u‖² from outputs and their tangent.

    logits   φ = distribution inputs as they are (mean and log σ of a Gaussian): the paper, read literally
    mean     φ = the mean of a Gaussian
    probs    φ = softmax probabilities
    fisher   the Fisher metric: uᵀJᵀ(diag p − ppᵀ)Ju, or Σ (J_μ u)²/σ² + 2 (J_{log σ} u)²

Masked logits are absent from every map. The metric (p or σ) is detached by default: through it the penalty
could be lowered by saturating p or inflating σ instead of by becoming less sensitive.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.distributions import MASKED_LOGIT, ActionDistribution, DiagGaussian, single_actions
from marl_aajr.core.values import one_of

OutputMap = Literal["logits", "mean", "probs", "fisher"]
Metric = Literal["detached", "full"]
OUTPUT_MAPS: tuple[OutputMap, ...] = get_args(OutputMap)
METRICS: tuple[Metric, ...] = get_args(Metric)


def check_output_map(output: str, distribution: ActionDistribution) -> None:
    """Raise `ValueError` where the map is unknown or not defined for this distribution."""
    one_of("output", output, OUTPUT_MAPS)
    gaussian = isinstance(distribution, DiagGaussian)
    if output == "probs" and gaussian:
        raise ValueError("expected 'logits', 'mean' or 'fisher' for a Gaussian policy, got 'probs'")
    if output == "mean" and not gaussian:
        raise ValueError("expected 'logits', 'probs' or 'fisher' for a discrete policy, got 'mean'")


def squared_gain(
    output: OutputMap,
    distribution: ActionDistribution,
    outputs: Tensor,
    tangent: Tensor,
    *,
    metric: Metric = "detached",
) -> Tensor:
    """‖J_φ u‖², `[...]`.

    Args:
        output: the output map φ.
        distribution: what the outputs parametrise.
        outputs: f(x), `[..., m]`.
        tangent: J_f(x) u, `[..., m]`.
        metric: `"detached"` or `"full"`: whether gradients flow through p or σ.
    """
    if metric == "detached":
        outputs = outputs.detach()
    if output == "fisher":
        return distribution.fisher(outputs, tangent)
    if isinstance(distribution, DiagGaussian):
        return (distribution.split(tangent)[0] if output == "mean" else tangent).square().sum(-1)
    tangent = tangent.masked_fill(outputs <= MASKED_LOGIT, 0.0)
    if output == "logits":
        return tangent.square().sum(-1)
    parts = zip(single_actions(distribution, outputs), single_actions(distribution, tangent), strict=True)
    return torch.stack([_softmax_gain(y, t) for y, t in parts]).sum(0)


def squared_distance(
    output: OutputMap,
    distribution: ActionDistribution,
    outputs: Tensor,
    other: Tensor,
    *,
    metric: Metric = "detached",
) -> Tensor:
    """‖φ(other) − φ(outputs)‖², `[...]`: a chord where `squared_gain` takes the tangent.

    `fisher` measures the chord of the distribution inputs by the metric at `outputs`.

    Args:
        output: the output map φ.
        distribution: what the outputs parametrise.
        outputs: distribution inputs, `[..., m]`.
        other: distribution inputs elsewhere, `[..., m]`.
        metric: of `fisher`, as in `squared_gain`.
    """
    if output == "probs":
        pairs = zip(single_actions(distribution, outputs), single_actions(distribution, other), strict=True)
        differences = [torch.softmax(z, -1) - torch.softmax(y, -1) for y, z in pairs]
        return torch.stack([difference.square().sum(-1) for difference in differences]).sum(0)
    return squared_gain(output, distribution, outputs, other - outputs, metric=metric)


def cotangent(
    output: OutputMap,
    distribution: ActionDistribution,
    outputs: Tensor,
    vector: Tensor,
    *,
    metric: Metric = "detached",
) -> Tensor:
    """A v with A Aᵀ the metric of φ, `[..., m]`: so E‖(A v)ᵀ J‖² = ‖J_φ‖_F² for v of covariance I.

    logits A = I, probs A = diag p − p pᵀ, fisher A = diag √p − p √pᵀ, Gaussian diag(1/σ, √2).

    Args:
        output: the output map φ.
        distribution: what the outputs parametrise.
        outputs: f(x), `[..., m]`.
        vector: v, `[..., m]`.
        metric: as in `squared_gain`.
    """
    if metric == "detached":
        outputs = outputs.detach()
    if isinstance(distribution, DiagGaussian):
        mean, log_std = distribution.split(vector)
        if output == "fisher":
            return torch.cat([mean * (-distribution.split(outputs)[1]).exp(), sqrt(2) * log_std], -1)
        return torch.cat([mean, torch.zeros_like(log_std)], -1) if output == "mean" else vector
    vector = vector.masked_fill(outputs <= MASKED_LOGIT, 0.0)
    if output == "logits":
        return vector
    parts = zip(single_actions(distribution, outputs), single_actions(distribution, vector), strict=True)
    return torch.cat([_softmax_cotangent(output, y, v) for y, v in parts], -1)


def safe_sqrt(squared: Tensor) -> Tensor:
    """√x with gradient 0 at x = 0, where its own is infinite; NaN stays NaN."""
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def _softmax_cotangent(output: OutputMap, logits: Tensor, vector: Tensor) -> Tensor:
    p = torch.softmax(logits, -1)
    root = p if output == "probs" else p.sqrt()
    return root * vector - p * (root * vector).sum(-1, keepdim=True)


def _softmax_gain(logits: Tensor, tangent: Tensor) -> Tensor:
    p = torch.softmax(logits, -1)
    return (p * (tangent - (p * tangent).sum(-1, keepdim=True))).square().sum(-1)
