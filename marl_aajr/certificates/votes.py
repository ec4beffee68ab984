"""Certificates of votes under Gaussian noise: randomised smoothing, right with a probability that is chosen.

    p_a(s) = P(f(s + η) chooses a),   η ~ N(0, diag(w²)),   p̲_a ≤ p_a,   p̄_b ≥ p_b of all others
    no δ with ‖δ / w‖₂ < ½ (Φ⁻¹(p̲_a) − Φ⁻¹(p̄_b)) changes the choice a of the vote

(Cohen 2019, arXiv 1902.02918, theorem 1; σ times this where w = σ.) The choice a comes from votes as the
victim plays by them (n₀), the shares from other draws of noise (n). Their Clopper-Pearson bounds hold all at
once with probability 1 − α: half of α is p̲_a's, the other half is shared by the others, and p̄_b is at most
1 − p̲_a. (Cohen's own code takes that for p̄_b, and abstains where a has less than half of all votes.) A
radius of 0 is an abstention. Of several actions at once each is bounded at its part of α, and the least
counts.

Of Box actions the choice is that each mean stays within one standard deviation of the policy: the median
moves past a threshold only where P(f(s + η) beyond it) passes ½, so that the same bound holds with that share
(Chiang 2020, arXiv 2007.03730); how far it moves is bounded by the order statistics beyond Φ(±ε).

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
from torch.nn.functional import one_hot

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

    def counts(self) -> Tensor:
        """How many of n draws make each part of the choice, and its strongest rival, `[B, parts, 2]`."""
        return torch.cat([self._counts(rows) for rows in self._blocks()])

    def largest(self, counts: Tensor, perturbations: PerturbationSet, *, agents: int = 1) -> Tensor:
        """The largest ε of the set that each decision is certified for, 0 where none is, `[B]`.

        Args:
            counts: of `counts`.
            perturbations: the set, in the network's units; of any size.
            agents: decisions that are to be right at once.
        """
        radius = self._leads(counts, self.alpha / agents).amin(-1).clamp_min(0)
        return radius / self._unit(perturbations)

    def reach(self, perturbations: PerturbationSet) -> float:
        """The largest ε that so many samples can certify: where all agree."""
        everybody = torch.tensor([self.samples, 0]).expand(1, len(self._rivals), 2)
        return float(self.largest(everybody, perturbations))

    def change(self, perturbations: PerturbationSet) -> Tensor | None:
        """A bound on how far the median of each decision moves in its furthest component, `[B]`.

        None: actions are discrete, or so few samples bound nothing in this set.
        """
        distribution = self.decisions.policy.distribution
        if not isinstance(distribution, DiagGaussian):
            return None
        share = float(norm.cdf(perturbations.epsilon * self._unit(perturbations)))
        above = int(binom.ppf(1 - self.alpha / len(self._rivals), self.samples, share)) + 1
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
        another choice has more votes, at confidence 1 − α over all that are asked about.
        """
        asked = (changes.changed & (certified >= epsilon)).nonzero().flatten()
        changed = torch.zeros_like(changes.changed)
        if len(asked):
            inputs = self.decisions.inputs.clone()
            inputs[asked] += torch.stack([changes.deltas[row] for row in asked.tolist()])
            there = replace(
                self, decisions=replace(self.decisions, inputs=inputs).select(asked), seed=self.seed + 1
            )
            # Any rival, of any part, may be the one that is in front.
            alpha = self.alpha / (len(asked) * max(self._rivals))
            changed[asked] = there._leads(there.counts().flip(-1), alpha).amax(-1) > 0
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
            within = torch.cat([moved <= 1, moved >= -1], -1).sum(0)
            return torch.stack([within, self.samples - within], -1)
        found = []
        for own, each in zip(*(single_actions(distribution, y) for y in (outputs, noisy)), strict=True):
            votes, choice = one_hot(each.argmax(-1), each.shape[-1]).sum(0), own.argmax(-1, keepdim=True)
            rival = votes.scatter(-1, choice, 0).amax(-1)
            found.append(torch.stack([votes.gather(-1, choice).squeeze(-1), rival], -1))
        return torch.stack(found, -2)

    @property
    def _rivals(self) -> list[int]:
        """Of each part of a choice the number of others."""
        return rivals(self.decisions.policy.distribution)

    def _leads(self, counts: Tensor, alpha: float) -> Tensor:
        """½ (Φ⁻¹(p̲) − Φ⁻¹(p̄)) of the first counts over the second, `[B, parts, 2] -> [B, parts]`."""
        alpha, found = alpha / len(self._rivals), []
        for part, others in zip(counts.unbind(-2), self._rivals, strict=True):
            own, rival = part.unbind(-1)
            least = _lower_bound(own, self.samples, alpha if others == 1 else alpha / 2)
            most = 1 - least
            if others > 1:
                most = most.minimum(
                    1 - _lower_bound(self.samples - rival, self.samples, alpha / (2 * others))
                )
            found.append((torch.special.ndtri(least) - torch.special.ndtri(most)) / 2)
        return torch.stack(found, -1)

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
    """Raise `ValueError` where so few samples can certify nothing, even if all agree: p̲ = α^(1/n) ≤ ½."""
    others = rivals(distribution)
    least = int(log(alpha / len(others) / min(2, max(others))) / log(0.5)) + 1
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


def rivals(distribution: ActionDistribution) -> list[int]:
    """Of each part of a choice the number of others: actions, or that a mean has moved on one side."""
    if isinstance(distribution, DiagGaussian):
        return [1] * (2 * distribution.k)
    sizes = distribution.nvec if isinstance(distribution, MultiCategorical) else (distribution.num_inputs,)
    return [size - 1 for size in sizes]


def _lower_bound(counts: Tensor, samples: int, alpha: float) -> Tensor:
    """Clopper-Pearson: the share is at least this much, at confidence 1 − α; float64."""
    known = counts.double().numpy()
    return torch.as_tensor(beta.ppf(alpha, known.clip(1), samples - known + 1) * (known > 0)).double()
