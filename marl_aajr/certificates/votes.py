"""Certificates of votes under Gaussian noise: randomised smoothing, right with a probability that is chosen.

    p̲ = the Clopper-Pearson bound, at confidence 1 − α, of P(f(s + η) chooses a),   η ~ N(0, diag(w²))
    no δ with ‖δ / w‖₂ < Φ⁻¹(p̲) changes the choice a of the vote

This is R = σ/2 (Φ⁻¹(p̲_a) − Φ⁻¹(p̄_b)) with p̄_b = 1 − p̲_a, as Cohen 2019 (arXiv 1902.02918) computes it.
The choice a comes from votes as the victim plays by them (n₀), p̲ from other draws of noise (n); p̲ ≤ ½ is an
abstention. Of several actions at once each is bounded at its part of α, and the least counts. Of Box actions
the choice is that each mean stays within one standard deviation of the policy: the median moves past a
threshold only where P(f(s + η) beyond it) passes ½, so that the same bound holds with that share (Chiang
2020, arXiv 2007.03730); how far it moves is bounded by the order statistics that lie beyond Φ(±ε).

The vote is that of endless samples: n₀ of them agree with it but for chance. An L∞ ball is certified by the
L2 ball around it, of √d times its radius for d features. With several agents, what is said of a whole step
holds for all of them at once: each is bounded at α / agents (Bonferroni, whatever they have in common;
CertifyCMARL, arXiv 2212.11746, controls the false discovery rate instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import torch
from scipy.stats import beta, binom, norm
from torch import Tensor

from marl_aajr.certificates.decisions import Decisions
from marl_aajr.certificates.sandwich import Changes
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, MultiCategorical, single_actions
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims.smoothing import SmoothedPolicy

_ROWS = 2**20
"""Noisy outputs that are kept at once."""


@dataclass(frozen=True)
class VoteBounds:
    """What noise says of decisions that are votes.

    Attributes:
        decisions: the decisions, by a policy that votes.
        samples: n ≥ 1, draws of noise for each decision.
        alpha: α, the probability with which the certificate of a decision may be wrong.
        seed: of the draws.
    """

    decisions: Decisions
    samples: int
    alpha: float
    seed: int

    @property
    def parts(self) -> int:
        """The number of shares that are bounded for one decision."""
        return _parts(self.decisions.policy.distribution)

    def counts(self) -> Tensor:
        """How many of n draws stand by each part of the choice, `[B, parts]`; the fewest decide."""
        return torch.cat([self._counts(rows) for rows in self._blocks()])

    def largest(self, counts: Tensor, perturbations: PerturbationSet, *, agents: int = 1) -> Tensor:
        """The largest ε of the set that each decision is certified for, 0 where none is, `[B]`.

        Args:
            counts: of `counts`.
            perturbations: the set, in the network's units; of any size.
            agents: decisions that are to be right at once.
        """
        least = counts.min(-1).values
        return self._radius(least, self.alpha / (agents * self.parts)) / self._unit(perturbations)

    def reach(self, perturbations: PerturbationSet) -> float:
        """The largest ε that so many samples can certify: where all agree."""
        everybody = torch.tensor(self.samples)
        return float(self._radius(everybody, self.alpha / self.parts) / self._unit(perturbations))

    def change(self, perturbations: PerturbationSet) -> Tensor | None:
        """A bound on how far the median of each decision moves in its furthest component, `[B]`.

        None: actions are discrete, or so few samples bound nothing in this set.
        """
        distribution = self.decisions.policy.distribution
        if not isinstance(distribution, DiagGaussian):
            return None
        share = float(norm.cdf(perturbations.epsilon * self._unit(perturbations)))
        above = int(binom.ppf(1 - self.alpha / self.parts, self.samples, share)) + 1
        if above > self.samples:
            return None
        found = []
        for rows in self._blocks():
            ordered = distribution.mode(self._noisy(rows)).sort(0).values
            mean = distribution.mode(self.decisions.outputs[rows])
            found.append(
                torch.maximum(ordered[above - 1] - mean, mean - ordered[self.samples - above]).amax(-1)
            )
        return torch.cat(found)

    def confirmed(self, changes: Changes, certified: Tensor, *, epsilon: float) -> Changes:
        """Of changes that attacks made, those that contradict a certificate whatever the noise.

        Votes of a few samples may turn by chance. A change is confirmed where, at the attacked observation,
        the choice has less than half of all votes, at confidence 1 − α over all that are asked about.
        """
        asked = (changes.changed & (certified >= epsilon)).nonzero().flatten()
        changed = torch.zeros_like(changes.changed)
        if len(asked):
            inputs = self.decisions.inputs.clone()
            inputs[asked] += torch.stack([changes.deltas[row] for row in asked.tolist()])
            there = replace(
                self, decisions=replace(self.decisions, inputs=inputs).select(asked), seed=self.seed + 1
            )
            counts = there.counts().min(-1).values
            alpha = self.alpha / (self.parts * len(asked))
            most = 1 - _lower_bound(self.samples - counts, self.samples, alpha)
            changed[asked] = most < 0.5
        return replace(changes, changed=changed)

    @property
    def _policy(self) -> SmoothedPolicy:
        policy = self.decisions.policy
        assert isinstance(policy, SmoothedPolicy)
        return policy

    def _blocks(self) -> Sequence[Tensor]:
        width = self.decisions.outputs.shape[-1]
        return torch.arange(len(self.decisions)).split(max(1, _ROWS // (self.samples * width)))

    @torch.no_grad()
    def _noisy(self, rows: Tensor) -> Tensor:
        """Outputs at n noisy observations, `[n, b, m]`."""
        inputs = self.decisions.inputs[rows]
        return self._policy.select(rows).noisy_outputs(inputs, samples=self.samples, seed=self.seed)

    def _counts(self, rows: Tensor) -> Tensor:
        distribution, outputs = self.decisions.policy.distribution, self.decisions.outputs[rows]
        noisy = self._noisy(rows)
        if isinstance(distribution, DiagGaussian):
            mean, log_std = distribution.split(outputs)
            moved = (distribution.mode(noisy) - mean) * (-log_std).exp()
            return torch.cat([moved <= 1, moved >= -1], -1).sum(0)
        chosen = zip(single_actions(distribution, outputs), single_actions(distribution, noisy), strict=True)
        return torch.stack([(each.argmax(-1) == own.argmax(-1)).sum(0) for own, each in chosen], -1)

    def _radius(self, counts: Tensor, alpha: float) -> Tensor:
        """Φ⁻¹(p̲), 0 for an abstention; in standard deviations of the noise."""
        return torch.special.ndtri(_lower_bound(counts, self.samples, alpha)).clamp_min(0)

    def _unit(self, perturbations: PerturbationSet) -> float:
        """The largest ‖δ / w‖₂ in the set by its ε; ∞ where it moves a feature without noise."""
        like = self.decisions.inputs[:1].double()
        reach = perturbations.semi_axes(like).expand_as(like) / perturbations.epsilon
        ratio = torch.where(reach > 0, reach / self._policy.noise.semi_axes(like), 0.0)
        return float(ratio.amax() if perturbations.norm == "l2" else torch.linalg.vector_norm(ratio))


@dataclass(frozen=True)
class VotedDecisions:
    """Decisions of one network, how many draws stand by each, and a perturbation set in its units."""

    bounds: VoteBounds
    counts: Tensor
    perturbations: PerturbationSet

    def largest(self, *, agents: int = 1) -> Tensor:
        """See `VoteBounds.largest`."""
        return self.bounds.largest(self.counts, self.perturbations, agents=agents)


def check_samples(distribution: ActionDistribution, *, samples: int, alpha: float) -> None:
    """Raise `ValueError` where so few samples can certify nothing, even if all agree: α^(1/n) ≤ ½."""
    least = int(log(alpha / _parts(distribution)) / log(0.5)) + 1
    if samples < least:
        raise ValueError(
            f"expected samples ≥ {least} to certify anything at alpha {alpha:g}, got {samples}; give more"
        )


def together(voted: Sequence[VotedDecisions]) -> Tensor | None:
    """The largest ε of each step for which all its decisions are certified at once, `[steps]`.

    None: there were no votes.
    """
    if not voted:
        return None
    steps = torch.cat([each.bounds.decisions.places[:, 1:] for each in voted])
    every, place, agents = steps.unique(dim=0, return_inverse=True, return_counts=True)
    sizes = torch.cat([each.largest(agents=int(agents.max())) for each in voted])
    endless = torch.full((len(every),), torch.inf, dtype=sizes.dtype)
    return endless.scatter_reduce(0, place, sizes, "amin")


def _parts(distribution: ActionDistribution) -> int:
    if isinstance(distribution, DiagGaussian):
        return 2 * distribution.k
    return len(distribution.nvec) if isinstance(distribution, MultiCategorical) else 1


def _lower_bound(counts: Tensor, samples: int, alpha: float) -> Tensor:
    """Clopper-Pearson: the share is at least this much, at confidence 1 − α; float64."""
    known = counts.double().numpy()
    return torch.as_tensor(beta.ppf(alpha, known.clip(1), samples - known + 1) * (known > 0)).double()
