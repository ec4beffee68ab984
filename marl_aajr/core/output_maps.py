"""Output maps φ: the output of a policy whose sensitivity ‖J_φ u‖² counts.

    logits    φ = distribution inputs as they are (mean and log σ of a Gaussian): the paper, read literally
    mean      φ = the mean of a Gaussian
    probs     φ = softmax probabilities
    fisher    the Fisher metric: uᵀJᵀ(diag p − ppᵀ)Ju, or Σ (J_μ u)²/σ² + 2 (J_{log σ} u)²
    margin    φ_a = log(z_{a*} − z_a) for each action a but the greedy one a*: the change of each margin
              relative to the margin itself

Masked logits are absent from every map, and the single actions of a multi-categorical policy are added. The
metric (p or σ) is detached by default: through it the penalty could be lowered by saturating p or inflating
σ instead of by becoming less sensitive.

Margin. Halving all logits halves ‖J u‖ and changes no greedy decision: the other maps can be satisfied that
way, and make policies less sure. With m_a = z_{a*} − z_a and ṁ = J_m u,

    ‖J_φ u‖² = Σ_a w_a (ṁ_a / m_a)²,        w_a = min(1, m_a / m_0)⁴

has none of it: a factor c > 0 on all logits multiplies m and ṁ alike. To first order action a overtakes a* at
s + h u where h = −m_a / ṁ_a. So where all margins are at least m_0, the greedy decision does not change
within h < 1 / ‖J_φ u‖.

Such a map is infinite where two actions tie, and w bounds it: |ṁ| / m_0 is the largest gain that a tangent ṁ
can have. Actions whose margin is far below m_0 = `MARGIN_FLOOR` count little: between them the policy is
indifferent. Gradients always flow through m, which is what makes the penalty blind to scale; w is the metric
here, and detached by default: the gradient has then no component along a scaling of all logits, below m_0
either. With metric `full` logits far below m_0 do satisfy the penalty. A larger margin lowers it, like a
smaller tangent: a policy may become surer than it was. A policy with one legal action has gain 0. Gaussian
policies have no margin; `fisher` measures them in units of σ.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.distributions import (
    MASKED_LOGIT,
    ActionDistribution,
    DiagGaussian,
    centred_tangent,
    single_actions,
)

OutputMap = Literal["logits", "mean", "probs", "fisher", "margin"]
Metric = Literal["detached", "full"]
OUTPUT_MAPS: tuple[OutputMap, ...] = get_args(OutputMap)
METRICS: tuple[Metric, ...] = get_args(Metric)
OUTPUT_MAPS_WITH_METRIC: tuple[OutputMap, ...] = ("probs", "fisher", "margin")

MARGIN_FLOOR = 0.3
"""m_0 in units of logits: odds of 1.35 to 1.

The largest penalty of a row grows as 1/m_0² and its gradient as 1/m_0³, where the mean is then made of a few
rows: with 0.1, gradients of policies with logits of size 1 are an order of magnitude larger than with 0.3.
"""


def check_output_map(output: str, distribution: ActionDistribution) -> None:
    """Raise `ValueError` where the map is unknown or not defined for this distribution."""
    one_of("output", output, OUTPUT_MAPS)
    gaussian = isinstance(distribution, DiagGaussian)
    if gaussian and output in ("probs", "margin"):
        raise ValueError(f"expected 'logits', 'mean' or 'fisher' for a Gaussian policy, got {output!r}")
    if not gaussian and output == "mean":
        raise ValueError(f"expected any output map but 'mean' for a discrete policy, got {output!r}")


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
        metric: `"detached"` or `"full"`: whether gradients flow through p, σ or w.
    """
    if output == "margin":
        parts = zip(single_actions(distribution, outputs), single_actions(distribution, tangent), strict=True)
        return torch.stack([_relative_margins(z, t, metric).square().sum(-1) for z, t in parts]).sum(0)
    if metric == "detached":
        outputs = outputs.detach()
    if output == "fisher":
        return distribution.fisher(outputs, tangent)
    if isinstance(distribution, DiagGaussian):
        return (distribution.split(tangent)[0] if output == "mean" else tangent).square().sum(-1)
    if output == "logits":
        return tangent.masked_fill(outputs <= MASKED_LOGIT, 0.0).square().sum(-1)
    parts = zip(single_actions(distribution, outputs), single_actions(distribution, tangent), strict=True)
    centred = (centred_tangent(y, t) for y, t in parts)
    return torch.stack([(p * t).square().sum(-1) for p, t in centred]).sum(0)


def squared_distance(
    output: OutputMap,
    distribution: ActionDistribution,
    outputs: Tensor,
    other: Tensor,
    *,
    metric: Metric = "detached",
) -> Tensor:
    """‖φ(other) − φ(outputs)‖², `[...]`: a chord where `squared_gain` takes the tangent.

    `fisher` and `margin` measure the chord by the metric at `outputs`. `other` are distribution inputs
    elsewhere.
    """
    if output == "probs":
        pairs = zip(single_actions(distribution, outputs), single_actions(distribution, other), strict=True)
        differences = (torch.softmax(z, -1) - torch.softmax(y, -1) for y, z in pairs)
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

    logits A = I, probs A = diag p − p pᵀ, fisher A = diag √p − p √pᵀ, Gaussian diag(1/σ, √2), margin
    A = (e_{a*} 1ᵀ − I) diag(√w / m). Arguments as for `squared_gain`; `vector` is v, `[..., m]`.
    """
    if output == "margin":
        pairs = zip(single_actions(distribution, outputs), single_actions(distribution, vector), strict=True)
        return torch.cat([_margin_cotangent(z, v, metric) for z, v in pairs], -1)
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
    products = []
    parts = zip(single_actions(distribution, outputs), single_actions(distribution, vector), strict=True)
    for logits, v in parts:
        p = torch.softmax(logits, -1)
        weighted = (p if output == "probs" else p.sqrt()) * v
        products.append(weighted - p * weighted.sum(-1, keepdim=True))
    return torch.cat(products, -1)


def _relative_margins(logits: Tensor, tangent: Tensor, metric: Metric) -> Tensor:
    """√w_a ṁ_a / m_a of a single action, `[..., n]`; 0 at the greedy action and at masked ones."""
    weight, greedy = _margin_weights(logits, metric)
    tangent = tangent.masked_fill(logits <= MASKED_LOGIT, 0.0)
    return weight * (tangent.gather(-1, greedy) - tangent)


def _margin_cotangent(logits: Tensor, vector: Tensor, metric: Metric) -> Tensor:
    weight, greedy = _margin_weights(logits, metric)
    weighted = weight * vector.masked_fill(logits <= MASKED_LOGIT, 0.0)
    return torch.zeros_like(weighted).scatter_add(-1, greedy, weighted.sum(-1, keepdim=True)) - weighted


def _margin_weights(logits: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """√w_a / m_a `[..., n]`, 0 at a* and at masked actions, and a* `[..., 1]`."""
    greedy = logits.argmax(-1, keepdim=True)
    margin = (logits.gather(-1, greedy) - logits).masked_fill(logits <= MASKED_LOGIT, 0.0)
    if metric == "full":
        return margin / margin.clamp_min(MARGIN_FLOOR).square(), greedy
    # √w / m = m / max(m, m_0)² and, w held fixed, its derivative −√w / m²: without dividing by a margin of 0.
    held = margin.detach()
    return (2 * held - margin) / held.clamp_min(MARGIN_FLOOR).square(), greedy
