"""What the actions of a learned observation adversary mean, for attacks and for ATLA alike.

    kind     the adversary's action for an agent                    the perturbation δ
    sa-rl    a ∈ [−1, 1]^d                                          a, squashed into the set
    pa-ad    a target action, or a direction of the Gaussian mean   where an ascent towards it leads

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
from marl_aajr.core.checks import one_of, positive, whole
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.objectives import (
    BoundObjective,
    Clean,
    Objective,
    OutputObjective,
    logit_difference,
    runner_up,
)
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet

Kind = Literal["sa-rl", "pa-ad"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of learned observation adversaries."""

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
        if isinstance(policy.distribution, DiagGaussian):
            return self._along(policy, policy.distribution, clean.outputs.detach())
        targets = [target.unsqueeze(-1) for target in self.direction.unbind(-1)]
        return logit_difference(policy, lambda i, logits: (targets[i], runner_up(logits, targets[i])))

    def _along(self, policy: Policy, distribution: DiagGaussian, outputs: Tensor) -> OutputObjective:
        length = torch.linalg.vector_norm(self.direction, dim=-1, keepdim=True).clamp_min(_FLOOR)
        _, log_std = distribution.split(outputs)
        by_mean = self.direction / length * (-log_std).exp()
        gradient = torch.cat([by_mean, torch.zeros_like(by_mean)], -1)

        def value(y: Tensor) -> Tensor:
            return (y * gradient).sum(-1)

        return OutputObjective(policy, value, lambda y: (value(y), gradient))


def follow(
    policy: Policy,
    obs: Tensor,
    direction: Tensor,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """The perturbation on the ascent's way that moves the policy furthest in a direction, `[B, d]`.

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
        step=steepest(perturbations.norm),
        start="zero",
        check=False,
    )
    return largest(trajectory.deltas, trajectory.values)[0]


@dataclass(frozen=True, kw_only=True)
class AdversaryActions(ABC):
    """How an adversary's actions for an agent, `[B, c]` or `[B]`, become a perturbation of what it sees."""

    kind: ClassVar[Kind]
    reads_policy: ClassVar[bool] = False
    """Whether `perturb` needs the attacked policy."""

    @abstractmethod
    def space(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> spaces.Space[Any]:
        """The space of the adversary's actions: a Box of [−1, 1], or the agent's own discrete actions.

        Args:
            observations: of the agent.
            actions: of the agent.
        """

    @abstractmethod
    def perturb(
        self, policy: Policy | None, obs: Tensor, actions: Tensor, perturbations: PerturbationSet
    ) -> Tensor:
        """δ in the set, `[B, d]`.

        Args:
            policy: the attacked one; None where the actions do not read it (`reads_policy`).
            obs: true observations, `[B, d]`.
            actions: of the adversary.
            perturbations: Δ.
        """

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

    The default is the strongest ascent that is still cheap, because an evaluation by a weak one flatters the
    victim. Measured on a team trained by plain PPO on simple_spread (300,000 steps; 3,000 observations of its
    games, each of the four actions that are not greedy as the target); ms for a batch of 300 rows on one CPU
    core, and environment steps per second of ATLA with PA-AD:

        K × η         target reached                             ms     ATLA
                      L∞ 0.05   L∞ 0.1   L∞ 0.2   L2 0.3
        1 × 1.0       0.366     0.516    0.561    0.522          0.7
        3 × 0.5       0.418     0.658    0.785    0.673          1.2    12,200
        5 × 0.5       0.424     0.669    0.807    0.705          1.8    10,900
        5 × 0.25      0.426     0.675    0.813    0.678          1.8
        10 × 0.25     0.433     0.686    0.834    0.727          3.1     8,800
        20 × 0.1      0.436     0.695    0.846    0.726          5.7
        100 × 0.05    0.438     0.701    0.855    0.746         26

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
        direction = actions.reshape(len(actions), -1)
        return follow(policy, obs, direction, perturbations, steps=self.steps, step_size=self.step_size)

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


_ACTIONS: dict[Kind, type[AdversaryActions]] = {cls.kind: cls for cls in (SARLActions, PAADActions)}


def adversary_actions(kind: str, **settings: Any) -> AdversaryActions:
    """The actions of a kind of adversary, with settings of their own.

    Raises:
        ValueError: an unknown kind or setting, or a value out of range.
    """
    one_of("kind", kind, KINDS)
    try:
        return _ACTIONS[kind](**settings)  # type: ignore[index]
    except TypeError:
        raise ValueError(f"expected settings of {kind!r}, got {', '.join(settings)}; remove them") from None


def width(space: spaces.Space[Any]) -> int:
    """c, how many numbers an action is."""
    return int(np.prod(space.shape or ()))


def side_by_side(parts: Sequence[spaces.Space[Any]]) -> spaces.Space[Any]:
    """The space of actions for several agents at once, all Boxes of [−1, 1] or all discrete."""
    if isinstance(parts[0], spaces.Box):
        return _cube(sum(width(part) for part in parts))
    nvec: list[int] = []
    for part in parts:
        nvec += [int(n) for n in np.ravel(part.nvec if isinstance(part, spaces.MultiDiscrete) else part.n)]
    return spaces.Discrete(nvec[0]) if len(nvec) == 1 else spaces.MultiDiscrete(nvec)


def _cube(size: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (size,), np.float32)
