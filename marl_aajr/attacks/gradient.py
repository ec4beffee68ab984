"""Gradient attacks: the inner maximisation that AAJR trains with, turned against the trained policy.

    δ_{t+1} = Π_Δ(δ_t + η · step(∇g(δ_t))),        t = 0 … K−1

FGSM is PGD with one step of size ε, MarginPGD climbs the margin of the greedy action, TargetedPGD climbs
towards each rival action in turn, and CriticPGD descends the victim's own critic. All return the best δ that
they saw, row by row: by the objective, over the steps and the restarts. So more restarts are never weaker,
whatever the landscape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.attacks.base import Attack
from marl_aajr.core.ascent import ascend, largest, steepest
from marl_aajr.core.bound_objective import BoundObjective, once
from marl_aajr.core.checks import one_of, positive, whole
from marl_aajr.core.distributions import Categorical, MultiCategorical, single_actions
from marl_aajr.core.objectives import Clean, Margin, Objective, logit_difference
from marl_aajr.core.policy import Policy
from marl_aajr.core.starts import near_observations
from marl_aajr.victims import Victim

AttackStep = Literal["auto", "sign", "normalized"]


@dataclass(frozen=True, kw_only=True)
class PGD(Attack, mixes_sizes=True):
    """Projected gradient ascent with restarts, against the policy's distribution or its greedy action.

    The defaults are the field's, KL (the maximal action difference) and 10 steps of ε/10, but for the starts:

    1. δ = 0 where the objective has a gradient there. `kl` has none: uniform in a hundredth of the set, so
       that the steps still reach every corner; in the whole set where rounding would lose that.
    2. for `kl`, the mirror image of the first start. KL is even in δ up to third order, and one side of the
       valley often only makes the policy surer of the same action: against a plain PPO policy on
       simple_spread (clean return -42.3), at ε = 0.2, one start gives -49.9, both sides -62.7, five starts
       -64.0.
    3. and on: uniform in the whole set.

    Attributes:
        steps: K ≥ 1.
        step_size: η as a fraction of ε.
        step: `"sign"` (steepest in L∞), `"normalized"` (in L2), or `"auto"`: the one of the set's norm.
        restarts: trajectories in all, ≥ 1.

    Raises:
        ValueError: a setting out of its range.

    Source: Madry 2018 (arXiv 1706.06083); for policies Zhang 2020 (arXiv 2003.08938).
    """

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = "projected gradient ascent on the KL divergence (maximal action difference)"

    objective: str | Objective = "kl"
    steps: int = 10
    step_size: float = 0.1
    step: AttackStep = "auto"
    restarts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps)
        whole("restarts", self.restarts)
        positive("step_size", self.step_size, note=" (a fraction of epsilon)")
        one_of("step", self.step, get_args(AttackStep))

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        objective = self.objective_for(policy.distribution)
        starts = torch.stack(list(islice(self._starts(objective, obs, generator), self.restarts)))
        return largest(*self._ascend_from(starts, policy, obs, objective))[0]

    def _ascend_from(
        self, starts: Tensor, policy: Policy, obs: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """From all starts `[R, B, d]` in one batch: the best δ of each, and its g, `[R, B]`."""
        count = len(starts)
        with torch.no_grad():
            outputs = policy.once(obs).repeat(count, 1)
            policy, obs = policy.repeat(count), obs.repeat(count, 1)
            clean = self.clean(policy, obs, outputs)
        own = self.perturbations.repeat(count)
        attack = self if own is self.perturbations else replace(self, perturbations=own)
        delta, value = attack._ascend(policy, obs, objective, clean, starts.flatten(0, 1))
        return delta.view_as(starts), value.view(count, -1)

    def _starts(self, objective: Objective, obs: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        if objective.flat_at_zero:
            first = near_observations(self.perturbations, obs, generator=generator)
            yield first
            yield -first
        else:
            yield torch.zeros_like(obs)
        while True:
            yield self.perturbations.sample(obs, generator=generator)

    def _ascend(
        self, policy: Policy, obs: Tensor, objective: Objective, clean: Clean, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The best δ on the way from `start`, by g, and its g: `[B, d]`, `[B]`."""
        trajectory = ascend(
            policy,
            obs,
            objective,
            self.perturbations,
            steps=self.steps,
            step_size=self.perturbations.radius(obs, self.step_size),
            step=steepest(self.perturbations.norm) if self.step == "auto" else self.step,
            start=start,
            clean=clean,
        )
        return largest(trajectory.deltas, trajectory.values)


@dataclass(frozen=True, kw_only=True)
class MarginPGD(PGD, mixes_sizes=True):
    """`PGD` on the margin between the greedy action and its rival: after the action, not its odds."""

    name: ClassVar[str] = "pgd-margin"
    summary: ClassVar[str] = "projected gradient ascent on the margin of the greedy action (discrete actions)"

    objective: str | Objective = "margin"
    restarts: int = 1


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack, mixes_sizes=True):
    """One full gradient step: `PGD` with `steps=1, step_size=1, restarts=1`.

    On `margin`, from δ = 0, for discrete actions. On `kl` for Gaussian ones: it is flat at 0, so the step
    starts from PGD's first random start.

    Source: Goodfellow 2015 (arXiv 1412.6572); for policies Huang 2017 (arXiv 1702.02284).
    """

    name: ClassVar[str] = "fgsm"
    summary: ClassVar[str] = "one gradient step of size epsilon"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        single = PGD(
            perturbations=self.perturbations, objective=self.objective, steps=1, step_size=1.0, restarts=1
        )
        return single.run(policy, obs, generator=generator)


@dataclass(frozen=True, eq=False)
class TargetedMargin(Margin):
    """z_t − z_{a*}, with a* greedy at s and t the rival of a given rank there.

    For multi-categorical policies the margins of the single actions are added. A rival that is masked, or
    that does not exist, is no target: g = 0.

    Attributes:
        rank: of each row's rival, `[B]`; 0: the nearest.
    """

    rank: Tensor

    def select(self, index: Tensor) -> TargetedMargin:
        return TargetedMargin(self.rank[index])

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        self.check(policy.distribution)
        chosen = [self._pair(y) for y in single_actions(policy.distribution, clean.outputs.detach())]
        return logit_difference(policy, lambda i, _: chosen[i])

    def _pair(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The target and the greedy action, each `[B, 1]`."""
        order = logits.argsort(dim=-1, descending=True, stable=True)
        place = (self.rank + 1).clamp_max(logits.shape[-1] - 1).unsqueeze(-1)
        return order.gather(-1, place), order[:, :1]


@dataclass(frozen=True, kw_only=True)
class TargetedPGD(PGD, mixes_sizes=True):
    """`PGD` towards each of the nearest rivals; kept is what leaves the greedy action furthest behind.

    Attributes:
        targets: how many rivals, from the nearest on; fewer where there are fewer actions.

    Raises:
        ValueError: a setting out of its range, an objective other than `margin`, or restarts, which the
            targets replace.

    Source: the targeted attacks of Croce & Hein 2020 (arXiv 2003.01690), in logits.
    """

    name: ClassVar[str] = "pgd-targeted"
    summary: ClassVar[str] = "projected gradient ascent towards each rival action (discrete actions)"

    objective: str | Objective = "margin"
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("targets", self.targets)
        if self.objective != "margin" or self.restarts != 1:
            raise ValueError(
                f"expected the objective 'margin' and restarts 1 for {self.name}, got {self.objective!r} and "
                f"{self.restarts}; set targets"
            )

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        distribution = policy.distribution
        margin = self.objective_for(distribution)
        assert isinstance(distribution, Categorical | MultiCategorical)
        most = max(distribution.nvec) if isinstance(distribution, MultiCategorical) else distribution.n
        ranks = max(min(self.targets, most - 1), 1)
        rank = torch.arange(ranks, device=obs.device).repeat_interleave(len(obs))
        starts = obs.new_zeros(ranks, *obs.shape)
        deltas, _ = self._ascend_from(starts, policy, obs, TargetedMargin(rank))
        everybody, copies = policy.repeat(ranks), obs.repeat(ranks, 1)
        with torch.no_grad():
            g = margin.bind(everybody, Clean(policy.once(obs).repeat(ranks, 1)))
            values = once(g, copies + deltas.flatten(0, 1)).view(ranks, -1)
        return largest(deltas, values)[0]


@dataclass(frozen=True, kw_only=True)
class CriticPGD(PGD, mixes_sizes=True):
    """`PGD` on −V(s + δ), V the victim's critic of the agent's own observation.

    A heuristic: the critic says nothing of what the actor does at s + δ. Published baselines are evaluated
    by it, which is why it is here; `robust-sarsa` follows the actor.

    Raises:
        ValueError: against a victim without a critic, or one whose critic reads more than its observation.

    Source: Pattanaik 2018 (arXiv 1712.03632), as run by Zhang 2020 (arXiv 2003.08938).
    """

    name: ClassVar[str] = "critic"
    summary: ClassVar[str] = "projected gradient descent on the victim's own critic"

    objective: str | Objective = "value"
    restarts: int = 1

    def against(self, victim: Victim, agent: str) -> Attack:
        if victim.policy(agent).critic is None:
            raise ValueError(
                f"expected a victim with a critic for the attack {self.name!r}, got none for {agent!r}; use "
                "robust-sarsa, which learns one"
            )
        return self
