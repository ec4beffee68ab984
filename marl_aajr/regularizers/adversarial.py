"""Settings that regularizers share: which observations may be perturbed, how far, and by which adversary.

One set of names, defaults and checks for all, so that a comparison differs in the penalty alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from marl_aajr.core.ascent import AUTO, STEPS, Step, Trajectory, ascend
from marl_aajr.core.channels import Channels, held_together
from marl_aajr.core.checks import (
    Schedule,
    as_schedule,
    as_values,
    maximum,
    minimum,
    nonfinite,
    one_of,
    raised,
    value_at,
    whole,
)
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.objectives import EVERYTHING, Need, Objective
from marl_aajr.core.policy import Policy
from marl_aajr.core.starts import STARTS, Start, starting_point
from marl_aajr.core.threat import Norm, PerturbationSet
from marl_aajr.core.token_network import check_radius
from marl_aajr.regularizers.regularizer import Regularizer
from marl_aajr.regularizers.sample import Context, Sample


@dataclass(frozen=True, kw_only=True)
class ObservationRegularizer(Regularizer):
    """A regularizer that looks at other observations than those of a share of the rows.

    Attributes:
        sample_fraction: share of the rows that is regularised, in (0, 1]. A twentieth does what all do
            (experiments/sample_share).
        interval: m ≥ 1: every m-th minibatch is regularised, on m times the share of its rows (at most all)
            and with m times the weight: in expectation the same, while small networks pay an evaluation's
            overhead once instead of m times (lazy regularization, Karras 2020, arXiv 1912.04958). None: 1 by
            the share, rounded down; 1 where the policy loss itself is perturbed.
        leaves: names of the parts of a nested observation that can be perturbed, such as `position` or
            `camera/depth`; None: all of floating-point numbers but action masks. Their features are those of
            mask, scale, low and high: in the order of the observation's sorted keys, row by row.
        mask: per feature, whether it can be perturbed; None: all can.
        scale: per feature, the size > 0 of one unit of perturbations; None: 1.
        channels: names of what can be perturbed, such as `[messages]`, as the environment of a run has them
            (elsewhere `marl_aajr.core.channels.held` makes the mask of them); None: all of it.
    """

    weights: ClassVar[tuple[str, ...]] = ()
    """The settings that weigh what is added to the loss, in the order of the signature."""
    sizes: ClassVar[tuple[str, ...]] = ()
    """The settings that say how far it looks, numbers or schedules."""

    sample_fraction: float = 0.05
    interval: int | None = None
    leaves: tuple[str, ...] | None = None
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None
    channels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        tuples = {"leaves", "mask", "scale", "low", "high", "channels"} & vars(self).keys()
        as_values(self, schedules=(*self.weights, *self.sizes), tuples=tuples)
        named = isinstance(self.leaves, tuple) and all(isinstance(name, str) for name in self.leaves)
        if self.leaves is not None and not (named and self.leaves):
            raise ValueError(
                f"expected leaves as a list of names such as [position, camera/depth], got {self.leaves!r}; "
                "leave it out for all of them"
            )
        if not 0 < self.sample_fraction <= 1:
            raise ValueError(f"expected a sample_fraction in (0, 1], got {self.sample_fraction!r}")
        if self.interval is not None:
            whole("interval", self.interval)

    def held_to(self, members: Mapping[str, Channels], width: int) -> Self | None:
        return held_together(self, members, width)

    def active(self, timestep: float) -> bool:
        return any(value_at(getattr(self, name), timestep) > 0 for name in self.weights)

    @property
    def every(self) -> int:
        if self.interval is not None:
            return self.interval
        return 1 if self.perturbs_loss else int(1 / self.sample_fraction + 1e-9)

    @property
    def perturbs_loss(self) -> bool:
        """Whether its term is a policy loss, which a step with m times its weight would let run away."""
        return False

    @property
    def rising(self) -> tuple[str, ...]:
        """The weights that a ramp raises."""
        return self.weights

    def ramped(self, start: float, end: float) -> Self:
        schedules: dict[str, Any] = {name: raised(getattr(self, name), start, end) for name in self.rising}
        return replace(self, **schedules)

    def rows(self, sample: Sample, context: Context) -> Sample:
        times = 1 if context.minibatch is None else self.every
        return sample.subset(min(1.0, times * self.sample_fraction), generator=context.generator)


@dataclass(frozen=True, kw_only=True)
class Perturbing(ObservationRegularizer):
    """A regularizer over a perturbation set.

    Attributes:
        epsilon: ε > 0, radius of the perturbation set, in the units that the network sees (of atla and
            adversarial_training: of the environment); a number or a schedule.
        norm: norm of the radius: `"linf"` or `"l2"`.
        low: lower bound of perturbed observations, a number or one per feature; None: none.
        high: upper bound of perturbed observations, a number or one per feature; None: none.
    """

    sizes: ClassVar[tuple[str, ...]] = ("epsilon",)

    epsilon: Schedule = 0.1
    norm: Norm = "linf"
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        replace(self.perturbations(0), epsilon=minimum(self.epsilon))

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        if policy.block is not None:
            check_radius(policy.embeddings, maximum(self.epsilon))
        return super().fitted(policy, obs, backends=backends)

    def perturbations(self, timestep: float) -> PerturbationSet:
        """Δ at an environment step."""
        names = ("norm", "mask", "scale", "low", "high", "channels")
        limits = {name: getattr(self, name) for name in names}
        return PerturbationSet(epsilon=value_at(self.epsilon, timestep), **limits)

    def around(self, sample: Sample, timestep: float) -> PerturbationSet:
        """Δ for the observations of a sample: around each of their words, where they are embedded words."""
        return self.perturbations(timestep).fitting(sample.policy.block)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Perturbing):
    """A regularizer with an inner adversary.

    Attributes:
        steps: K ≥ 1, ascent steps of the inner adversary.
        step_size: η > 0, size of an ascent step as a fraction of ε: a number, a schedule, or `"auto"`, by the
            measured curvature. That is measured row by row (`marl_aajr.core.ascent`). For `raw` steps it is η
            itself.
        step: direction of an ascent step: `"sign"`, `"normalized"` or `"raw"` (the gradient itself).
        start: δ_0, start of the ascent: `"zero"` or `"random"`; None: random where the objective is flat at
            zero.
    """

    steps: int = 3
    step_size: Schedule | Literal["auto"] = 0.5
    step: Step = "sign"
    start: Start | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps)
        if self.step_size != AUTO:
            if isinstance(self.step_size, str):
                raise ValueError(
                    f"expected a number, a schedule or 'auto' for step_size, got {self.step_size!r}"
                )
            size = as_schedule(self.step_size, name="step_size")
            object.__setattr__(self, "step_size", size)
            if not minimum(size) > 0:
                raise ValueError(f"expected a step_size > 0, got {self.step_size!r}")
        one_of("step", self.step, STEPS)
        if self.start is not None:
            one_of("start", self.start, STARTS)
        if (adversary := self.adversary).flat_at_zero and self.start == "zero":
            raise ValueError(
                f"expected start='random' or None with {adversary}, got start='zero'; its gradient "
                "vanishes at δ = 0"
            )

    @property
    @abstractmethod
    def adversary(self) -> Objective:
        """The objective that the adversary maximises."""

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        self.adversary.check(distribution)
        require(self.adversary.needs, offers, f"the objective {self.adversary}")

    def attack(self, sample: Sample, context: Context) -> Trajectory:
        """The adversarial trajectory from the rows of a sample.

        Where metrics are read, g(δ_K) is a part of it for every method: what an adversary has gained means
        the same in all of them.
        """
        return ascend(
            sample.policy,
            sample.obs,
            self.adversary,
            self.around(sample, context.timestep),
            steps=self.steps,
            step_size=self.step_size_at(context.timestep),
            step=self.step,
            start=self.starting_points(sample, context),
            clean=sample.clean,
            gradient_noise=self.gradient_noise(sample, context),
            final_value=context.measure,
            check=context.check,
        )

    def starting_points(self, sample: Sample, context: Context) -> Tensor:
        """δ_0 of each row, `[B, ..., d]`."""
        objective, perturbations = self.adversary, self.around(sample, context.timestep)

        def draw(obs: Tensor) -> Tensor:
            return starting_point(
                obs, objective, perturbations, start=self.start, generator=context.generator
            )

        return sample.draw(draw)

    def gradient_noise(self, sample: Sample, context: Context) -> Callable[[int], Tensor] | None:
        """The noise on the gradient of step t; None: none."""
        return None

    def step_size_at(self, timestep: float) -> float | Literal["auto"]:
        """η in the units of the observations."""
        if isinstance(self.step_size, str):
            return AUTO
        relative = 1.0 if self.step == "raw" else value_at(self.epsilon, timestep)
        return value_at(self.step_size, timestep) * relative


def require(needs: Collection[Need], offers: Collection[Need], what: str) -> None:
    """Raise `ValueError` where a learner does not offer what a setting needs."""
    if missing := set(needs) - set(offers):
        names, have = (", ".join(sorted(n.replace("_", " ") for n in some)) for some in (missing, offers))
        have = have or "none of these"
        raise ValueError(f"expected a module and learner with {names} for {what}, got {have}; choose another")


def check_share(name: str, schedule: Schedule) -> None:
    """Raise `ValueError` unless a weight stays in [0, 1]."""
    if maximum(schedule) > 1:
        raise ValueError(f"expected {name} in [0, 1], got {schedule}")


def check_adversarial_loss(weight: Schedule, dual_clip: float | None) -> None:
    """Raise `ValueError` for a weight beyond 1, a bound ≤ 1, or one of a loss that is not there."""
    check_share("adversarial_weight", weight)
    if dual_clip is None:
        return
    if isinstance(dual_clip, bool) or not (isfinite(dual_clip) and dual_clip > 1):
        raise ValueError(f"expected a dual_clip > 1, got {dual_clip!r}")
    if maximum(weight) == 0:
        raise ValueError(
            f"expected no dual_clip with adversarial_weight=0, which has no loss to bound, got {dual_clip!r}"
        )


def trajectory_metrics(
    sample: Sample, trajectory: Trajectory, loss: Tensor, context: Context
) -> dict[str, Tensor]:
    """Metrics of the ascent over the rows that count; `nonfinite` covers the loss and the ascent."""
    if not context.measure:
        return {}
    values = trajectory.values
    return {
        "objective_gain": sample.mean(values[-1] - values[0]),
        "monotone_fraction": sample.mean(trajectory.monotone.float()),
        "no_direction_fraction": sample.mean((~trajectory.has_direction).float()),
        "nonfinite": nonfinite(loss.detach() + values.sum()),
    }
