"""What the actions of a learned adversary mean, for attacks on observations and for ATLA alike.

    kind     the adversary's action for an agent                    the perturbation δ
    sa-rl    a ∈ [−1, 1]^d                                          a, squashed into the set
    pa-ad    a target action, or a direction of the Gaussian mean   where an ascent towards it leads
    replace  one of the agent's own actions (in ATLA)               0: it is done in the place of the agent's

SA-RL (Zhang 2021, arXiv 2101.08452) learns d numbers for each decision by trial and error. PA-AD (Sun 2022,
arXiv 2106.05087) knows the policy, and learns only where to move it. Its inner ascent maximises

    g(δ) = Σ_i z_{i, t_i}(s + δ) − max_{a ≠ t_i} z_{i, a}(s + δ)    discrete actions, targets t
    g(δ) = ⟨u, μ(s + δ) / σ(s)⟩                                      Gaussian actions, direction u

as in section 4 of Sun 2022: a director chooses a direction in the policy's space, an actor finds the
observation that moves the policy that way. A greedy discrete policy can only be moved to an action, so the
action is the direction (their D-PA-MDP); for Gaussian policies it is a direction of the mean, in units of the
standard deviation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.ascent import ascend, largest, steepest
from marl_aajr.core.bound_objective import BoundObjective, OutputObjective
from marl_aajr.core.checks import one_of, positive, whole
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.objectives import Clean, Objective, logit_difference, runner_up
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet

Kind = Literal["sa-rl", "pa-ad", "replace"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of learned adversaries."""

_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Towards(Objective):
    """g of the module's docstring: how far a policy has gone in a direction.

    Attributes:
        direction: targets `[B, j]` (integers, one for each discrete action), or directions `[B, k]`,
            whose length does not count.
    """

    direction: Tensor

    def select(self, index: Tensor) -> Towards:
        return Towards(self.direction[index])

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        if not isinstance(policy.distribution, DiagGaussian):
            targets = [target.unsqueeze(-1) for target in self.direction.unbind(-1)]
            return logit_difference(policy, lambda i, logits: (targets[i], runner_up(logits, targets[i])))
        length = torch.linalg.vector_norm(self.direction, dim=-1, keepdim=True).clamp_min(_FLOOR)
        _, log_std = policy.distribution.split(clean.outputs.detach())
        by_mean = self.direction / length * (-log_std).exp()
        gradient = torch.cat([by_mean, torch.zeros_like(by_mean)], -1)

        def value(y: Tensor) -> Tensor:
            return (y * gradient).sum(-1)

        return OutputObjective(policy, value, lambda y: (value(y), gradient))


@dataclass(frozen=True, kw_only=True)
class AdversaryActions(ABC):
    """How an adversary's actions for an agent, `[B, c]` or `[B]`, become a perturbation of what it sees."""

    kind: ClassVar[Kind]
    reads_policy: ClassVar[bool] = False
    """Whether `perturb` needs the attacked policy."""

    @abstractmethod
    def space(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> spaces.Space[Any]:
        """The space of the adversary's actions: a Box of [−1, 1], or the agent's own discrete actions."""

    @abstractmethod
    def perturb(
        self, policy: Policy | None, obs: Tensor, actions: Tensor, perturbations: PerturbationSet
    ) -> Tensor:
        """δ in the set, `[B, d]`, at the true observations; the policy may be None unless `reads_policy`."""

    def share(self, actions: Tensor, perturbations: PerturbationSet, agents: int) -> Tensor:
        """Actions of a joint adversary for its n agents, side by side `[E, n · c]`, held to one budget."""
        return actions

    def part(self, perturbations: PerturbationSet, agents: int) -> PerturbationSet:
        """The part of one budget that each of n agents of a joint adversary has, after `share`."""
        return perturbations

    def label(self, policy: Policy, clean: Tensor, moved: Tensor) -> Tensor:
        """The actions that would move outputs from `clean [B, m]` to `moved`, `[B, c]`.

        Raises:
            ValueError: the effect on a policy does not say which actions have it.
        """
        raise ValueError(f"expected actions that follow from their effect, got those of {self.kind}")


@dataclass(frozen=True, kw_only=True)
class SARLActions(AdversaryActions):
    """SA-RL: the action is the perturbation, in units of the set."""

    kind: ClassVar[Kind] = "sa-rl"

    def space(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> spaces.Space[Any]:
        return _cube(spaces.flatdim(observations))

    def perturb(
        self, policy: Policy | None, obs: Tensor, actions: Tensor, perturbations: PerturbationSet
    ) -> Tensor:
        return perturbations.squash(actions.to(obs.dtype), obs)

    def share(self, actions: Tensor, perturbations: PerturbationSet, agents: int) -> Tensor:
        unit = actions.clamp(-1.0, 1.0)
        if perturbations.norm == "linf":
            return unit
        if perturbations.mask is not None:
            unit = unit * unit.new_tensor(perturbations.mask).repeat(agents)
        return unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(1.0)


@dataclass(frozen=True, kw_only=True)
class PAADActions(AdversaryActions):
    """PA-AD: the action is where to move the policy, by an ascent of K steps of η from δ = 0.

    Of the perturbations on the way, each row's is the one that moves the policy furthest.

    The default is strong for its price, because an evaluation by a weak one flatters the victim. Against a
    team trained by plain PPO on simple_spread (L∞ 0.1; 3,000 observations of its games, each of the four
    actions that are not greedy as the target) it reaches 0.686 of the targets in 3.1 ms for 300 rows on one
    core; 1 × 1.0 reaches 0.516 in 0.7 ms, 5 × 0.25 0.675 in 1.8 ms, 100 × 0.05 0.701 in 26 ms.

    Attributes:
        steps: K.
        step_size: η as a fraction of ε.

    Raises:
        ValueError: settings out of range.
    """

    kind: ClassVar[Kind] = "pa-ad"
    reads_policy: ClassVar[bool] = True

    steps: int = 10
    step_size: float = 0.25

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        positive("step_size", self.step_size, note=" (a fraction of epsilon)")

    def space(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> spaces.Space[Any]:
        return _cube(spaces.flatdim(actions)) if isinstance(actions, spaces.Box) else actions

    def perturb(
        self, policy: Policy | None, obs: Tensor, actions: Tensor, perturbations: PerturbationSet
    ) -> Tensor:
        assert policy is not None
        with policy.fixed():
            trajectory = ascend(
                policy,
                obs,
                Towards(actions.reshape(len(actions), -1)),
                perturbations,
                steps=self.steps,
                step_size=self.step_size * perturbations.epsilon,
                step=steepest(perturbations.norm),
                start="zero",
                check=False,
            )
        return largest(trajectory.deltas, trajectory.values)[0]

    def part(self, perturbations: PerturbationSet, agents: int) -> PerturbationSet:
        if perturbations.norm == "linf":
            return perturbations
        return replace(perturbations, epsilon=perturbations.epsilon / agents**0.5)

    def label(self, policy: Policy, clean: Tensor, moved: Tensor) -> Tensor:
        kind = policy.distribution
        if isinstance(kind, DiagGaussian):
            mean, log_std = kind.split(clean)
            shift = (kind.mode(moved) - mean) * (-log_std).exp()
            return shift / shift.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(shift.dtype).tiny)
        return kind.mode(moved).reshape(len(moved), -1)


@dataclass(frozen=True, kw_only=True)
class ReplacingActions(AdversaryActions):
    """The action stands in the place of the agent's (`marl_aajr.rollout.replaced`); nothing is perturbed."""

    kind: ClassVar[Kind] = "replace"

    def space(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> spaces.Space[Any]:
        return actions

    def perturb(
        self, policy: Policy | None, obs: Tensor, actions: Tensor, perturbations: PerturbationSet
    ) -> Tensor:
        return torch.zeros_like(obs)


_MEANINGS: dict[str, Any] = {cls.kind: cls for cls in (SARLActions, PAADActions, ReplacingActions)}


def adversary_actions(kind: str, **settings: Any) -> AdversaryActions:
    """The actions of a kind of adversary, with settings of their own.

    Raises:
        ValueError: an unknown kind or setting, or a value out of range.
    """
    one_of("kind", kind, KINDS)
    try:
        made: AdversaryActions = _MEANINGS[kind](**settings)
    except TypeError:
        raise ValueError(f"expected settings of {kind!r}, got {', '.join(settings)}; remove them") from None
    return made


def width(space: spaces.Space[Any]) -> int:
    """c, how many numbers an action is."""
    return int(np.prod(space.shape or ()))


def side_by_side(parts: Sequence[spaces.Space[Any]]) -> spaces.Space[Any]:
    """The space of actions for several agents at once, all Boxes of [−1, 1] or all discrete."""
    if isinstance(parts[0], spaces.Box):
        return _cube(sum(width(part) for part in parts))
    counts = [np.ravel(part.nvec if isinstance(part, spaces.MultiDiscrete) else part.n) for part in parts]
    nvec = np.concatenate(counts).tolist()
    return spaces.Discrete(nvec[0]) if len(nvec) == 1 else spaces.MultiDiscrete(nvec)


def _cube(size: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (size,), np.float32)
