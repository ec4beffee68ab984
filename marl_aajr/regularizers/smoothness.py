"""Penalties on how far the policy's output moves under the worst perturbation.

    smooth_policy   D(π(·|s), π(·|s + δ*)),   D = KL for discrete actions, ‖Δμ/σ‖² for Gaussians
    ernie           ‖φ(f(s + δ*)) − φ(f(s))‖₂

Each has an adversary of its own, which maximises what is penalised. AAJR penalises the slope on the way;
these penalise the height reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.ascent import AUTO
from marl_aajr.core.bound_objective import BoundObjective, OutputObjective, once
from marl_aajr.core.checks import Schedule, one_of, value_at
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian
from marl_aajr.core.jacobian import safe_sqrt
from marl_aajr.core.objectives import Clean, Objective
from marl_aajr.core.output_maps import check_output_map, squared_distance
from marl_aajr.core.policy import Policy
from marl_aajr.regularizers.adversarial import Adversarial, trajectory_metrics
from marl_aajr.regularizers.sample import Context, LossTerm, Sample

DistanceOutput = Literal["logits", "probs", "mean"]

_LANGEVIN_BETA = 1e-5
_LANGEVIN_BATCH = 64
"""The source's inverse temperature, and the rows of the batch whose mean it differentiates."""


@dataclass(frozen=True)
class ActionDifference(Objective):
    """KL(π(·|s) ‖ π(·|s+δ)), for Gaussians Σ ((μ(s+δ) − μ(s))/σ(s))²; what belongs to s is detached.

    A Gaussian's KL at equal σ is half of that. With σ detached the difference cannot be hidden in noise.
    """

    flat_at_zero: ClassVar[bool] = True

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        distribution, outputs = policy.distribution, clean.outputs.detach()
        if not isinstance(distribution, DiagGaussian):
            return OutputObjective(policy, *distribution.kl_from(outputs))
        mean, log_std = distribution.split(outputs)
        precision = (-log_std).exp()

        def value_and_gradient(other: Tensor) -> tuple[Tensor, Tensor]:
            z = (distribution.mode(other) - mean) * precision
            return z.square().sum(-1), torch.cat([2 * z * precision, torch.zeros_like(z)], -1)

        return OutputObjective(policy, lambda other: value_and_gradient(other)[0], value_and_gradient)


@dataclass(frozen=True)
class OutputDistance(Objective):
    """‖φ(f(s+δ)) − φ(f(s))‖₂."""

    flat_at_zero: ClassVar[bool] = True  # the norm has no gradient at all there

    output: DistanceOutput = "logits"

    def check(self, distribution: ActionDistribution) -> None:
        check_output_map(self.output, distribution)

    def bind(self, policy: Policy, clean: Clean) -> BoundObjective:
        outputs = clean.outputs.detach()
        return lambda obs: self.between(policy.distribution, outputs, policy(obs))

    def between(self, distribution: ActionDistribution, outputs: Tensor, other: Tensor) -> Tensor:
        """The distance of two outputs, `[..., m] -> [...]`, with gradient 0 where they are equal."""
        return safe_sqrt(squared_distance(self.output, distribution, outputs, other))


@dataclass(frozen=True, kw_only=True)
class Smoothness(Adversarial):
    """A penalty at the point δ_K that its own adversary found.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty: a number or a schedule, `'[[env_step, value], ...]'`.
    """

    weights: ClassVar[tuple[str, ...]] = ("coefficient",)

    coefficient: Schedule = 1e-1

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        trajectory = self.attack(sample, context)
        differences = self.differences(sample, trajectory.deltas[-1])
        context.check_finite("the difference of the outputs at s + δ_K", differences)
        penalty = sample.mean(differences)
        loss = value_at(self.coefficient, context.timestep) * penalty
        return LossTerm(
            loss, {"penalty": penalty.detach(), **trajectory_metrics(sample, trajectory, loss, context)}
        )

    def differences(self, sample: Sample, delta: Tensor) -> Tensor:
        """The penalised difference at s + δ, with its graph, `[B, ...]`."""
        return once(self.adversary.bind(sample.policy, sample.clean), sample.obs + delta)


@dataclass(frozen=True, kw_only=True)
class SmoothPolicy(Smoothness):
    """The regularizer of SA-PPO: the action distribution must not move under the worst perturbation.

    Attributes:
        langevin: whether the adversary is the source's own (SGLD), or plain projected gradient ascent, as for
            AAJR. SGLD starts in a random corner one step away (unless `start` says otherwise) and adds
            decaying Gaussian noise to the gradient before its sign.

    The gradient flows through s + δ only, as in the source's code; its K is 10, with steps of ε/10. For
    DQN it is the KL of softmax(Q), not SA-DQN's hinge.

    Source: Zhang 2020 (arXiv 2003.08938), https://github.com/huanzhang12/SA_PPO.
    """

    name: ClassVar[str] = "smooth_policy"
    summary: ClassVar[str] = "action difference at the inner maximiser (SA-PPO, Zhang 2020)"

    langevin: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.langevin and self.step_size == AUTO:
            raise ValueError(
                "expected a fixed step_size with langevin=True, whose noise depends on it, got 'auto'; "
                "set langevin=False"
            )

    @property
    def adversary(self) -> Objective:
        return ActionDifference()

    def starting_points(self, sample: Sample, context: Context) -> Tensor:
        if not self.langevin or self.start is not None:
            return super().starting_points(sample, context)
        size = self.step_size_at(context.timestep)
        assert not isinstance(size, str)
        return size * _normal(sample, context).sign()

    def gradient_noise(self, sample: Sample, context: Context) -> Callable[[int], Tensor] | None:
        size = self.step_size_at(context.timestep)
        if not self.langevin or isinstance(size, str):
            return None
        scale = _LANGEVIN_BATCH * sqrt(2 * size * _LANGEVIN_BETA)
        return lambda t: scale / (t + 2) * _normal(sample, context)


def _normal(sample: Sample, context: Context) -> Tensor:
    return sample.draw(lambda obs: torch.empty_like(obs).normal_(generator=context.generator))


@dataclass(frozen=True, kw_only=True)
class ERNIE(Smoothness):
    """ERNIE: the network's output must not move under the worst perturbation, in the plain Euclidean norm.

    Attributes:
        output: output whose distance counts: `"logits"`, `"probs"` (its actor-critic) or `"mean"`.

    Rows are averaged and δ is projected on the ball, as in the paper; the published code takes the norm of a
    whole batch, does not project, and scales its steps by `|s|`. The gradient flows through both outputs.
    Its Stackelberg variant, which differentiates the inner steps, is not included.

    Source: Bukharin 2023 (arXiv 2310.10810), https://github.com/abukharin3/ERNIE.
    """

    name: ClassVar[str] = "ernie"
    summary: ClassVar[str] = "distance of the outputs at the inner maximiser (ERNIE, Bukharin 2023)"

    output: DistanceOutput = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("output", self.output, get_args(DistanceOutput))

    @property
    def adversary(self) -> OutputDistance:
        return OutputDistance(self.output)

    def differences(self, sample: Sample, delta: Tensor) -> Tensor:
        outputs = sample.policy.once(sample.obs + delta)
        return self.adversary.between(sample.policy.distribution, sample.outputs, outputs)
