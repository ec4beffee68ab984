"""Penalties on what bounds say a policy might do, instead of on what an adversary found that it does.

    convex_smooth_policy   an upper bound of D(π(·|s), π(·|s + δ)) over the set
    radial                 the policy loss at the least and the greatest probability of the action taken

Bounds (`marl_aajr.core.bounds`) are β · intervals + (1 − β) · CROWN on the lines of the intervals. They are
loose on a network that was not trained for them: let ε rise, `epsilon: [[0, 1e-3], [800000, 0.1]]`. Only
policies that are a stack of linear layers and increasing activations have them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from marl_aajr.core.bounds import BoundedMLP, Ends, Region
from marl_aajr.core.checks import Schedule, as_values, value_at
from marl_aajr.core.distributions import MASKED_LOGIT, ActionDistribution, DiagGaussian, single_actions
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.mlp import opened
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.core.policy import Policy
from marl_aajr.regularizers.adversarial import Perturbing, check_share, require
from marl_aajr.regularizers.sample import Context, LossTerm, Sample
from marl_aajr.victims.layers import ClipLogStd, FreeLogStd

_FEW = 32
"""Actions of which all differences are bounded, whichever action was taken."""


@dataclass(frozen=True, kw_only=True)
class Bounding(Perturbing):
    """A regularizer over bounds of the policy's outputs.

    Attributes:
        interval_share: β in [0, 1], share of the interval bounds, which are cheap, in the bounds; a number
            or a schedule. The rest is CROWN, on the lines of the intervals (CROWN-IBP), which takes about
            thirty times as long.
    """

    needs_layers: ClassVar[bool] = True

    interval_share: Schedule = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        as_values(self, schedules=("interval_share",), tuples=())
        check_share("interval_share", self.interval_share)

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        super().fitted(policy, obs, backends=backends)
        network, few = bounded_network(policy), obs[:8].detach()
        with policy.fixed(), torch.no_grad():
            outputs, ends = policy(few), network.outputs(Region(few, few, few), "interval")
        shown = outputs[:, : ends.low.shape[-1]]
        other = ((shown - ends.low).abs() > 1e-3 * shown.abs().clamp_min(1.0)) & (shown > MASKED_LOGIT)
        if bool(other.any()):
            raise ValueError(
                f"expected a policy that is its layers and nothing else for {self.name}, got one whose "
                "outputs are others than those of its layers; use smooth_policy, which asks the policy itself"
            )
        return self

    def ends(self, sample: Sample, context: Context, less: Tensor | None = None) -> Ends:
        """Bounds of the outputs, of means only for Box actions, `[B, m]` each.

        Args:
            sample: the rows.
            context: of the evaluation.
            less: for each output the place of another, `[B, m]`, that is taken off it: bounds of
                differences, in which what both share cancels; None: nothing is.
        """
        network, kind = bounded_network(sample.policy), sample.policy.distribution
        region = Region.of(self.perturbations(context.timestep), sample.obs)
        width = kind.k if isinstance(kind, DiagGaussian) else kind.num_inputs
        each = torch.eye(network.width, dtype=sample.obs.dtype, device=sample.obs.device)[:width]
        if less is not None and width <= _FEW:
            pairs = (each.unsqueeze(1) - each).flatten(0, 1)  # all of them in one product are quicker
            ends = self._mixed(network, region, pairs, context)
            places = torch.arange(width, device=less.device) * width + less
            return Ends(ends.low.gather(-1, places), ends.high.gather(-1, places))
        return self._mixed(network, region, each if less is None else each - each[less], context)

    def _mixed(self, network: BoundedMLP, region: Region, each: Tensor, context: Context) -> Ends:
        """Bounds of combinations of outputs by the share of either kind."""
        share = value_at(self.interval_share, context.timestep)
        if share in (0, 1):
            return network.ends(region, each, "interval" if share else "crown_ibp")
        wide, narrow = network.ends(region, each, "interval"), network.ends(region, each, "crown_ibp")
        return Ends(narrow.low.lerp(wide.low, share), narrow.high.lerp(wide.high, share))


@dataclass(frozen=True, kw_only=True)
class ConvexSmoothPolicy(Bounding):
    """The regularizer of SA-PPO in its convex form: no perturbation moves the action distribution far.

    With l ≤ f(s + δ) ≤ u for all δ in the set and d_i = max(u_i − f_i(s), f_i(s) − l_i):

        Gaussian     Σ_i (d_i / σ_i)²  ≥  max_δ Σ_i ((μ_i(s + δ) − μ_i(s)) / σ_i)²
        categorical  ¼ Σ_i d_i²        ≥  max_δ KL(π(·|s) ‖ π(·|s + δ))

    The first is the source's, with σ detached: twice the KL at equal σ, as in `smooth_policy`. The source has
    no discrete actions; there KL(z ‖ z + d) = ½ dᵀ H d, with H the covariance of a one-hot action at some
    logits between the two, whose largest eigenvalue is at most ½. Masked actions do not count. The gradient
    flows through s and s + δ, as in the source.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty: a number or a schedule, `'[[env_step, value], ...]'`.

    Source: Zhang 2020 (arXiv 2003.08938), section 3.3 and appendix C, https://github.com/huanzhang12/SA_PPO.
    """

    name: ClassVar[str] = "convex_smooth_policy"
    summary: ClassVar[str] = "bound on the action difference (SA-PPO's convex form, Zhang 2020)"
    weights: ClassVar[tuple[str, ...]] = ("coefficient",)

    coefficient: Schedule = 1e-1

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        ends = self.ends(sample, context)
        clean = sample.outputs[..., : ends.low.shape[-1]]
        moves = torch.maximum(ends.high - clean, clean - ends.low).where(clean > MASKED_LOGIT, 0.0)
        if isinstance(kind := sample.policy.distribution, DiagGaussian):
            differences = (moves * (-kind.split(sample.outputs.detach())[1]).exp()).square().sum(-1)
        else:
            differences = 0.25 * moves.square().sum(-1)
        context.check_finite("the bound on the action difference", differences)
        penalty = sample.mean(differences)
        loss = value_at(self.coefficient, context.timestep) * penalty
        return LossTerm(loss, {"penalty": penalty.detach(), "bound_width": _width(sample, ends)})


@dataclass(frozen=True, kw_only=True)
class Radial(Bounding):
    """RADIAL-PPO: the policy loss at the worst that a perturbation could make of the action's probability.

        (1 − w) · ℓ(π(a|s)) + w · max(ℓ(π̲(a)), ℓ(π̄(a))),    π̲(a) ≤ π(a|s + δ) ≤ π̄(a) for all δ

    with ℓ the learner's policy loss, PPO's. For discrete actions log π(a) is −log Σ_j exp(z_j − z_a)
    at the upper, and at the lower, bounds of the differences; the source bounds logits one by one, which is
    looser. For Gaussians the mean is as far from a as it can be, and as near, with the σ of s: a bound where
    σ does not depend on s, as in the source.

    Attributes:
        adversarial_weight: w in [0, 1], which is 1 − κ of the source: a number or a schedule.

    Source: Oikarinen 2021 (arXiv 2008.01976), section 4.3, https://github.com/tuomaso/radial_rl_v2.
    """

    name: ClassVar[str] = "radial"
    summary: ClassVar[str] = "policy loss at bounds of the action's probability (RADIAL, Oikarinen 2021)"
    weights: ClassVar[tuple[str, ...]] = ("adversarial_weight",)

    adversarial_weight: Schedule = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("adversarial_weight", self.adversarial_weight)

    @property
    def perturbs_loss(self) -> bool:
        return True

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        require({"policy_loss", "advantages"}, offers, self.name)

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        assert sample.policy_loss is not None
        loss = sample.policy_loss
        ends, least, greatest = self._worst(sample, context)
        adversarial = torch.maximum(loss(least, sample), loss(greatest, sample))
        difference = sample.mean(adversarial - loss(sample.outputs, sample))
        term = value_at(self.adversarial_weight, context.timestep) * difference
        context.check_finite("the policy loss at bounds of the action's probability", term)
        return LossTerm(term, {"loss_difference": difference.detach(), "bound_width": _width(sample, ends)})

    def _worst(self, sample: Sample, context: Context) -> tuple[Ends, Tensor, Tensor]:
        """Bounds, and the outputs that give the action its least and its greatest probability."""
        kind, actions = sample.policy.distribution, sample.actions
        assert actions is not None
        if isinstance(kind, DiagGaussian):
            ends = self.ends(sample, context)
            log_std = kind.split(sample.outputs)[1]
            far = torch.where((actions - ends.low).abs() > (ends.high - actions).abs(), ends.low, ends.high)
            near = torch.minimum(torch.maximum(actions, ends.low), ends.high)
            return ends, torch.cat([far, log_std], -1), torch.cat([near, log_std], -1)
        logits = single_actions(kind, sample.outputs)
        taken, start = [], 0
        for part, action in zip(logits, actions.reshape(len(actions), -1).unbind(-1), strict=True):
            taken.append((start + action.long().unsqueeze(-1)).expand_as(part))
            start += part.shape[-1]
        ends, legal = self.ends(sample, context, torch.cat(taken, -1)), sample.outputs > MASKED_LOGIT
        return ends, ends.high.where(legal, sample.outputs), ends.low.where(legal, sample.outputs)


def bounded_network(policy: Policy) -> BoundedMLP:
    """The layers of a policy with bounds, up to the mean of Box actions.

    Raises:
        ValueError: a policy that is no stack of such layers; what stands in the way is named.
    """
    if policy.layers is None:
        kind = type(policy.network or policy).__name__
        raise ValueError(
            f"expected a policy that is a stack of layers from flat observations to outputs, got {kind}; use "
            "smooth_policy or aajr, which ask any policy"
        )
    layers: list[nn.Module] = list(opened(policy.layers))
    while isinstance(policy.distribution, DiagGaussian) and isinstance(layers[-1], FreeLogStd | ClipLogStd):
        layers.pop()
    return BoundedMLP(layers)


def _width(sample: Sample, ends: Ends) -> Tensor:
    """The mean distance of the bounds of a row's widest output."""
    legal = sample.outputs[..., : ends.low.shape[-1]] > MASKED_LOGIT
    return sample.mean((ends.high - ends.low).detach().where(legal, 0.0).amax(-1))
