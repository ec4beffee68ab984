"""PA-AD's inner ascent: move a policy where its director points, as far as the perturbation set allows.

    g(δ) = Σ_i z_{i, t_i}(s + δ) − max_{a ≠ t_i} z_{i, a}(s + δ)      discrete actions, targets t
    g(δ) = ⟨u, μ(s + δ) / σ(s)⟩                                        Gaussian actions, direction u

Source: Sun 2022 (arXiv 2106.05087), section 4: a director chooses a direction in the policy's space, an actor
finds the observation that moves the policy that way. A greedy discrete policy can only be moved to an action,
so that the action is the direction (their D-PA-MDP); for Gaussian policies it is one of the mean, in units of
its standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import MASKED_LOGIT, DiagGaussian
from marl_aajr.core.objectives import BoundObjective, Clean, Objective, OutputObjective, single_actions
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet

_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Towards(Objective):
    """g of the module's documentation: how far a policy has gone where it was pointed.

    Attributes:
        direction: targets `[B, j]` (integers, one for each discrete action), or directions `[B, k]`,
            whose length does not count.
    """

    direction: Tensor

    def select(self, index: Tensor) -> Towards:
        return Towards(self.direction[index])

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        if isinstance(policy.distribution, DiagGaussian):
            return self._push(policy, policy.distribution, clean.outputs.detach())
        return self._aim(policy)

    def _push(self, policy: Policy, distribution: DiagGaussian, outputs: Tensor) -> OutputObjective:
        length = torch.linalg.vector_norm(self.direction, dim=-1, keepdim=True).clamp_min(_FLOOR)
        _, log_std = distribution.split(outputs)
        slope = self.direction / length * (-log_std).exp()
        full = torch.cat([slope, torch.zeros_like(slope)], -1)

        def value(y: Tensor) -> Tensor:
            return (y * full).sum(-1)

        return OutputObjective(policy, value, lambda y: (value(y), full))

    def _aim(self, policy: Policy) -> OutputObjective:
        targets = [target.unsqueeze(-1) for target in self.direction.unbind(-1)]

        def lead(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The lead of the target `[B, 1]`, its strongest rival, and whether it may be chosen at all."""
            rival = logits.detach().scatter(-1, target, -torch.inf).argmax(-1, keepdim=True)
            aim, other = logits.gather(-1, target), logits.gather(-1, rival)
            possible = (aim > MASKED_LOGIT) & (other > MASKED_LOGIT)
            return torch.where(possible, aim - other, 0.0), rival, possible

        def value(outputs: Tensor) -> Tensor:
            parts = zip(single_actions(policy, outputs), targets, strict=True)
            return torch.cat([lead(logits, target)[0] for logits, target in parts], -1).sum(-1)

        def value_and_slope(outputs: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = [], []
            for logits, target in zip(single_actions(policy, outputs), targets, strict=True):
                gained, rival, possible = lead(logits, target)
                unit = possible.to(logits.dtype)
                values.append(gained)
                slopes.append(torch.zeros_like(logits).scatter_(-1, target, unit).scatter_(-1, rival, -unit))
            return torch.cat(values, -1).sum(-1), torch.cat(slopes, -1)

        return OutputObjective(policy, value, value_and_slope)


def follow(
    policy: Policy,
    obs: Tensor,
    direction: Tensor,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """The perturbation that goes furthest where the director points, of those on the way, `[B, d]`.

    Args:
        policy: the victims'.
        obs: true observations, `[B, d]`.
        direction: of each row; see `Towards`.
        perturbations: Δ.
        steps: K, from δ = 0.
        step_size: η as a fraction of ε.
    """
    trajectory = ascend(
        policy,
        obs,
        Towards(direction),
        perturbations,
        steps=steps,
        step_size=step_size * perturbations.epsilon,
        step="sign" if perturbations.norm == "linf" else "normalized",
        start="zero",
        check=False,
    )
    best = trajectory.values.argmax(0)
    return trajectory.deltas[best, torch.arange(len(best), device=best.device)]
