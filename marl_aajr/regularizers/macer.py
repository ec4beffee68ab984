"""MACER: a large radius within which Gaussian noise leaves the policy's choice as it is.

    ẑ(s)  = 1/k Σ_j softmax(β f(s + η_j)),   η_j ~ N(0, σ²)
    ξ(s)  = Φ⁻¹(ẑ_a) − Φ⁻¹(max_{b ≠ a} ẑ_b)
    loss  = λ · σ/2 · mean( max(γ − ξ, 0) · 1[ξ ≥ 0] )

σ/2 · ξ is the radius that randomised smoothing certifies of the vote for a (Cohen 2019,
`marl_aajr.certificates.votes`), with soft votes. Where the vote is for another action than a there is no
radius, and no term: PPO's loss stands where MACER has its cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.checks import Schedule, minimum, nonfinite, one_of, value_at, whole
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, single_actions
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers.adversarial import ObservationRegularizer
from marl_aajr.regularizers.sample import Context, LossTerm, Sample

Choice = Literal["greedy", "taken"]

_LEAST_SHARE = 1e-6
"""Beyond it Φ⁻¹ is endless, or a matter of rounding."""


@dataclass(frozen=True, kw_only=True)
class MACER(ObservationRegularizer):
    """Maximise the certified radius of the policy's choices under Gaussian noise, without an adversary.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty: a number or a schedule, `'[[env_step, value], ...]'`.
        sigma: σ > 0, standard deviation of the noise, in the units that the network sees (times `scale`); a
            number or a schedule. That of the smoothing under which the policy is to play.
        samples: k ≥ 1, noisy observations of each row.
        beta: β > 0, inverse temperature of the soft votes.
        gamma: γ > 0, bound on ξ, beyond which nothing is gained.
        choice: a, the action whose radius counts: the `"greedy"` one, or that which was `"taken"`.

    Of several actions at once the least ξ counts. Of Gaussian actions, which MACER does not know, a is that
    every mean stays within one standard deviation, as in evaluations: ẑ is the share of noisy observations,
    by a logistic function, for which one component does so on one side, and ξ = 2 Φ⁻¹(ẑ) of the least.

    Source: Zhai 2020 (arXiv 2001.02378), https://github.com/RuntianZ/macer, whose k = 16, β = 16 and γ = 8
    are the defaults; beside PPO's loss as in arXiv 2605.11469, with `rollouts` Adv-PPO + MACER.
    """

    name: ClassVar[str] = "macer"
    summary: ClassVar[str] = "radius that randomised smoothing certifies (MACER, Zhai 2020)"
    weights: ClassVar[tuple[str, ...]] = ("coefficient",)
    sizes: ClassVar[tuple[str, ...]] = ("sigma",)

    coefficient: Schedule = 1e-1
    sigma: Schedule = 0.1
    samples: int = 16
    beta: float = 16.0
    gamma: float = 8.0
    choice: Choice = "greedy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not minimum(self.sigma) > 0:
            raise ValueError(f"expected a sigma > 0, got {self.sigma!r}; without noise there are no votes")
        self._noise(0)
        whole("samples", self.samples)
        for name in ("beta", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isfinite(value) and value > 0):
                raise ValueError(f"expected a {name} > 0, got {value!r}")
        one_of("choice", self.choice, get_args(Choice))

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        distribution = sample.policy.distribution
        if self.choice == "taken" and sample.actions is not None:
            chosen = sample.actions
        else:
            chosen = distribution.mode(sample.outputs.detach())
        difference = self.difference(
            distribution, sample.outputs.detach(), chosen, self._noisy(sample, context)
        )
        context.check_finite("the soft votes of noisy observations", difference)
        # NaN is no vote for another action: it must show.
        lost = difference < 0
        sigma = value_at(self.sigma, context.timestep)
        penalty = sample.mean((sigma / 2 * (self.gamma - difference).clamp_min(0)).masked_fill(lost, 0.0))
        loss = value_at(self.coefficient, context.timestep) * penalty
        if not context.measure:
            return LossTerm(loss, {})
        radius = sigma / 2 * difference.detach().clamp_min(0)
        metrics = {
            "penalty": penalty.detach(),
            "radius": sample.mean(radius),
            "other_choice_fraction": sample.mean(lost.to(radius.dtype)),
            "nonfinite": nonfinite(loss.detach()),
        }
        return LossTerm(loss, metrics)

    def difference(
        self, distribution: ActionDistribution, outputs: Tensor, chosen: Tensor, noisy: Tensor
    ) -> Tensor:
        """ξ of each row, `[B, ...]`.

        Args:
            distribution: what the outputs parametrise.
            outputs: without noise, `[B, ..., m]`; constants.
            chosen: a, `[B, ...]` or one for each action, `[B, ..., n]`.
            noisy: outputs at noisy observations, `[k, B, ..., m]`.
        """
        if isinstance(distribution, DiagGaussian):
            _, log_std = distribution.split(outputs)
            moved = (distribution.mode(noisy) - chosen.detach()) * (-log_std).exp()
            sides = torch.cat([1 - moved, 1 + moved], -1)
            return 2 * _normal_quantile(torch.sigmoid(self.beta * sides).mean(0)).amin(-1)
        parts = single_actions(distribution, noisy)
        each = chosen.unsqueeze(-1) if len(parts) == 1 and chosen.ndim < outputs.ndim else chosen
        found = []
        for logits, action in zip(parts, each.long().split(1, -1), strict=True):
            votes = (self.beta * logits).softmax(-1).mean(0)
            others = votes.scatter(-1, action, 0.0).amax(-1)
            found.append(_normal_quantile(votes.gather(-1, action).squeeze(-1)) - _normal_quantile(others))
        return torch.stack(found).amin(0)

    def _noise(self, timestep: float) -> PerturbationSet:
        """The set whose half axes are the noise's standard deviations."""
        limits = {name: getattr(self, name) for name in ("mask", "scale", "channels")}
        return PerturbationSet(epsilon=value_at(self.sigma, timestep), norm="l2", **limits)

    def _noisy(self, sample: Sample, context: Context) -> Tensor:
        """Outputs at k noisy observations of each row, `[k, B, ..., m]`."""

        def draw(obs: Tensor) -> Tensor:
            several = obs.new_empty(len(obs), self.samples, *obs.shape[1:])
            return several.normal_(generator=context.generator)

        noise = sample.draw(draw).movedim(1, 0) * self._noise(context.timestep).semi_axes(sample.obs)
        outputs = sample.policy.repeat(self.samples).once((sample.obs + noise).flatten(0, 1))
        return outputs.unflatten(0, (self.samples, -1))


def _normal_quantile(share: Tensor) -> Tensor:
    """Φ⁻¹ of a share, within ±4.75."""
    return torch.special.ndtri(share.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE))
