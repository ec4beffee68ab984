"""How far decisions are from changing, whatever the perturbation: margins that bounds prove.

A greedy action a stays where for every other legal action j

    min_δ z_a(s + δ) − z_j(s + δ)  >  2 γ,

with the difference as one more linear layer of the network, so that what the logits share cancels, and γ the
rounding of a pass in single precision (`BoundedMLP.rounding`). Bounds are computed in double precision, whose
own rounding is 2⁻²⁹ of that, and over a set that is wider by what rounding makes of s + δ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import log

import torch
from torch import Tensor, nn

from marl_aajr.certificates.decisions import Decisions
from marl_aajr.core.bounds import BoundedMLP, BoundMethod, Region
from marl_aajr.core.distributions import MASKED_LOGIT, DiagGaussian, single_actions
from marl_aajr.core.mlp import opened
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.victims.layers import ClipLogStd, FreeLogStd
from marl_aajr.victims.recurrent import Recurrent
from marl_aajr.victims.smoothing import SmoothedPolicy
from marl_aajr.victims.victim_policy import VictimPolicy

UNIT = torch.finfo(torch.float32).eps / 2
"""The unit of rounding of the numbers that policies play with."""

_ROWS = 512
_LEAST = 1e-3
"""The smallest ε that is looked for, as a share of the largest."""
_HALVINGS = 12


@dataclass(frozen=True)
class Margins:
    """Of each decision: its margin, > 0 where it provably stays, and by how much its outputs may be rounded.

    Attributes:
        margin: in the units of the network's outputs, `[B]`.
        rounding: γ, `[B]`.
        change: of Box actions, the bound on the furthest move of a component of the mean, `[B]`; else None.
    """

    margin: Tensor
    rounding: Tensor
    change: Tensor | None = None


class DecisionBounds:
    """Bounds on what the policy of some decisions can say.

    Args:
        decisions: of one policy.

    Raises:
        ValueError: a network that cannot be bounded; the layer is named.
    """

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self.network = bounded(decisions.policy)
        self._check_point()

    @cached_property
    def reach(self) -> float:
        """How large the inputs are, for the least ε that is no rounding."""
        return float(self.decisions.inputs.abs().max())

    def check_resolution(self, perturbations: PerturbationSet) -> None:
        """Raise `ValueError` for an ε that single precision cannot tell from rounding."""
        axes = perturbations.semi_axes(self.decisions.inputs.double())
        ratio = float((16 * UNIT * self.decisions.inputs.abs() / axes).where(axes > 0, 0.0).max())
        if ratio > 1:
            raise ValueError(
                f"expected an epsilon beyond the rounding of single precision, at least "
                f"{perturbations.epsilon * ratio:.2g} for observations up to {self.reach:.3g} (as the "
                f"network sees them), got {perturbations.epsilon:g}"
            )

    @torch.no_grad()
    def margins(
        self, perturbations: PerturbationSet, method: BoundMethod, *, rows: Tensor | None = None
    ) -> Margins:
        """The margins of all decisions, or of some; the set in the units of the network."""
        chosen = self.decisions if rows is None else self.decisions.select(rows)
        found = []
        for some in torch.arange(len(chosen)).split(_ROWS):
            found.append(self._margins(chosen.select(some), perturbations.select(some), method))
        changes = [each.change for each in found if each.change is not None]
        return Margins(
            torch.cat([each.margin for each in found]),
            torch.cat([each.rounding for each in found]),
            torch.cat(changes) if changes else None,
        )

    def largest(self, perturbations: PerturbationSet, known: Tensor) -> Tensor:
        """The largest ε up to that of the set that each decision is certified for, `[B]`, by bisection.

        Bounds need not shrink with ε, so that what is found is a certified size, not always the largest.

        Args:
            perturbations: of the largest size.
            known: sizes that are certified already, `[B]`; 0: none.
        """
        top = float(perturbations.epsilon)
        low = known.double().log().clamp_min(log(top * _LEAST))
        high, found = torch.full_like(low, log(top)), known.double().clone()
        for step in range(_HALVINGS):
            tried = high if step == 0 else (low + high) / 2
            sets = PerturbationSets.of(perturbations, tried.exp().unsqueeze(-1))
            stays = self.margins(sets, "crown").margin > 0
            found = torch.where(stays, torch.maximum(found, tried.exp()), found)
            low, high = torch.where(stays, tried, low), torch.where(stays, high, tried)
        return found

    def _margins(self, decisions: Decisions, perturbations: PerturbationSet, method: BoundMethod) -> Margins:
        region = Region.of(perturbations, decisions.inputs.double()).widened(UNIT)
        rounding = self.network.rounding(region, UNIT)
        if isinstance(decisions.policy.distribution, DiagGaussian):
            return self._of_mean(decisions, region, rounding, method)
        logits = decisions.outputs.double()
        greedy = _greedy(single_actions(decisions.policy.distribution, logits))
        each = torch.eye(logits.shape[-1], dtype=logits.dtype)
        least = self.network.least(region, each[greedy] - each, method)
        margin = least - rounding.gather(-1, greedy) - rounding
        others = (greedy != torch.arange(logits.shape[-1])) & (logits > MASKED_LOGIT)
        return Margins(margin.where(others, torch.inf).amin(-1), rounding.amax(-1))

    def _of_mean(
        self, decisions: Decisions, region: Region, rounding: Tensor, method: BoundMethod
    ) -> Margins:
        """σ less the furthest that the mean can move, in the component where least is left."""
        distribution = decisions.policy.distribution
        assert isinstance(distribution, DiagGaussian)
        mean, log_std = distribution.split(decisions.outputs.double())
        ends, k = self.network.outputs(region, method), distribution.k
        change = torch.maximum(ends.high[:, :k] - mean, mean - ends.low[:, :k]) + rounding[:, :k]
        margin = (log_std.exp() - change).amin(-1)
        return Margins(margin, rounding[:, :k].amax(-1), change.amax(-1))

    def _check_point(self) -> None:
        """That the bounded network is the policy's: bounds of a point are its outputs there."""
        first = self.decisions.select(torch.arange(min(8, len(self.decisions))))
        point = first.inputs.double()
        region = Region(point, point, point)
        ends = self.network.outputs(region, "interval")
        outputs = first.outputs.double()[:, : ends.low.shape[-1]]
        room = self.network.rounding(region, UNIT) + 1e-12
        known = outputs > MASKED_LOGIT
        if not bool((((ends.low - outputs).abs() <= room) | ~known)[:, : _means(first.policy)].all()):
            raise ValueError(
                f"expected a policy that is its layers and nothing else, got one of {first.agent!r} whose "
                "outputs are others than those of its layers; attack it, or smooth it"
            )


def bounded(policy: VictimPolicy) -> BoundedMLP:
    """The network of a policy in double precision: to the logits, or to the mean of Box actions.

    Raises:
        ValueError: a layer that cannot be bounded, or a network that does more with a mask than to forbid.
    """
    if isinstance(policy, SmoothedPolicy):
        raise ValueError(
            "expected a policy that decides by one pass to bound, got one that votes under noise"
        )
    if getattr(policy.module, "reads_action_mask", False):
        raise ValueError(
            f"expected a network of observations alone to bound, got a {type(policy.module).__name__}, which "
            "reads the action mask as well; attack this policy, or smooth it"
        )
    layers: list[nn.Module] = list(opened(policy.module, Recurrent))
    while isinstance(policy.distribution, DiagGaussian) and isinstance(layers[-1], FreeLogStd | ClipLogStd):
        layers.pop()
    return BoundedMLP(layers, dtype=torch.float64)


def _means(policy: VictimPolicy) -> int:
    """How many outputs are bounded."""
    distribution = policy.distribution
    return distribution.k if isinstance(distribution, DiagGaussian) else distribution.num_inputs


def _greedy(actions: Sequence[Tensor]) -> Tensor:
    """For each logit `[B, n_i]` of several actions the place of its action's greedy one, `[B, Σ n_i]`."""
    starts = accumulate((logits.shape[-1] for logits in actions), initial=0)
    best = (start + logits.argmax(-1, keepdim=True) for start, logits in zip(starts, actions, strict=False))
    return torch.cat([b.expand_as(logits) for b, logits in zip(best, actions, strict=True)], -1)
