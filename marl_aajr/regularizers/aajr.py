"""Adversarially-Aligned Jacobian Regularization (F. Mumcu, Y. Yilmaz, arXiv 2603.04378).

    R(θ) = E_s [ (1/K) Σ_{t<K} ‖ J(s + sg[δ_t]) · sg[u_t] ‖₂² ]
    L(θ) = L_PPO + κ · (ℓ(s + sg[δ_K]) − ℓ(s)) + λ · R(θ)

δ_t and u_t come from projected gradient ascent (`marl_aajr.core.ascent`); sg is stop-gradient; ℓ is the
learner's policy loss. The penalty, the trajectory and the minimax loss are the paper's; the mixing weight κ,
the choice of output map and the forms with a gain bound (`marl_aajr.regularizers.forms`) are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.core.ascent import Trajectory
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.numerics import check_finite
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.core.output_maps import squared_distance
from marl_aajr.core.policy import Policy
from marl_aajr.core.values import Schedule, maximum, one_of, value_at
from marl_aajr.regularizers.adversarial import require, share, trajectory_metrics
from marl_aajr.regularizers.base import Evaluation, Sample, State
from marl_aajr.regularizers.forms import (
    DUAL,
    DUAL_BOUNDS,
    DUAL_STEP_SIZE,
    FORMS,
    Form,
    apply_form,
    check_form,
    move_dual,
)
from marl_aajr.regularizers.jacobian_penalty import JacobianPenalty, gain_metrics
from marl_aajr.regularizers.perturbed_loss import check_dual_clip, perturbed_loss


@dataclass(frozen=True, kw_only=True)
class AAJR(JacobianPenalty):
    """Penalise the policy's sensitivity along the directions in which an adversary pushes it.

    Attributes:
        adversarial_weight: κ in [0, 1], share of the policy loss taken at the perturbed observation s + δ_K;
            a number or a schedule.
        form: penalty on ‖J u‖: `"squared"`, `"hinge"` or `"constraint"`. Their equations are in
            `marl_aajr.regularizers.forms`.
        gain_bound: γ ≥ 0, bound on ‖J u‖ of the forms `hinge` and `constraint`.
        dual_step_size: α > 0 of `constraint`, whose dual variable starts at `coefficient`; None: 1e-4.
        dual_bounds: [low, high] of the dual variable; None: [0, 1].
        dual_clip: c > 1 bounds the adversarial loss of rows with Â < 0 (Ye 2020); None: no bound.
        secant: take the chord ‖f(s+δ_{t+1}) − f(s+δ_t)‖² / ‖δ_{t+1} − δ_t‖² in place of ‖J u‖²: a different,
            cheaper penalty, without derivatives of the network.

    Every other setting is described with its class: `Perturbing`,
    `Adversarial`,
    `Targeted`,
    `JacobianPenalty`.

    Raises:
        ValueError: a setting out of its range, or two that exclude each other, at construction.

    Example:
        >>> AAJR(coefficient=3e-3, epsilon=0.1, steps=3)
    """

    name: ClassVar[str] = "aajr"
    summary: ClassVar[str] = "directional Jacobian penalty along the adversary's ascent path (AAJR)"
    weights: ClassVar[tuple[str, ...]] = ("coefficient", "adversarial_weight")

    adversarial_weight: Schedule = 0.0
    form: Form = "squared"
    gain_bound: float | None = None
    dual_step_size: float | None = None
    dual_bounds: tuple[float, float] | None = None
    dual_clip: float | None = None
    secant: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share("adversarial_weight", self.adversarial_weight)
        one_of("form", self.form, FORMS)
        if self.form == "constraint":
            if self.dual_step_size is None:
                object.__setattr__(self, "dual_step_size", DUAL_STEP_SIZE)
            low, high = DUAL_BOUNDS if self.dual_bounds is None else self.dual_bounds
            object.__setattr__(self, "dual_bounds", (float(low), float(high)))
        check_form(
            self.form,
            coefficient=self.coefficient,
            gain_bound=self.gain_bound,
            dual_step_size=self.dual_step_size,
            dual_bounds=self.dual_bounds,
        )
        if self.secant and self.backend != "auto":
            raise ValueError(
                f"expected no backend with secant=True, which needs no derivative, got {self.backend!r}; "
                "remove one of the two"
            )
        check_dual_clip(self.dual_clip, self.adversarial_weight)

    def active(self, timestep: float) -> bool:
        return self.form == "constraint" or super().active(timestep)

    @property
    def rising(self) -> tuple[str, ...]:
        # The weight of a constraint moves by itself.
        return ("adversarial_weight",) if self.form == "constraint" else self.weights

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        if maximum(self.adversarial_weight) > 0:
            require({"policy_loss"}, offers, "adversarial_weight > 0")

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        return self if self.secant else super().fitted(policy, obs, backends=backends)

    def initial_state(self) -> dict[str, Tensor]:
        if self.form != "constraint":
            return {}
        return {DUAL: torch.tensor(self.coefficient, dtype=torch.float64)}

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        if self.form == "constraint":
            assert self.gain_bound is not None
            assert self.dual_step_size is not None
            assert self.dual_bounds is not None
            move_dual(
                state,
                metrics,
                gain_bound=self.gain_bound,
                step_size=self.dual_step_size,
                bounds=self.dual_bounds,
            )

    def evaluate(
        self,
        sample: Sample,
        *,
        timestep: float,
        generator: torch.Generator,
        state: State | None = None,
        check: bool = False,
    ) -> Evaluation:
        sample = self.drawn(sample, generator, check=check)
        weight = self._weight(timestep, state)
        kappa = value_at(self.adversarial_weight, timestep)
        trajectory = self.climb(sample, timestep=timestep, generator=generator, check=check)
        with torch.set_grad_enabled(weight > 0 or self.form == "constraint"):
            penalty, squared = self._penalty(sample, trajectory)
        loss = weight * penalty
        metrics = {"penalty": penalty.detach(), **gain_metrics(sample, squared)}
        if self.form == "constraint":
            metrics[DUAL] = torch.tensor(weight)
        if kappa > 0:
            adversarial = perturbed_loss(sample, trajectory.deltas[-1], dual_clip=self.dual_clip)
            loss = loss + kappa * adversarial.difference
            metrics |= adversarial.metrics
        if check:
            check_finite("the directional gain ‖J u‖", squared)
            check_finite("the adversarial policy loss", loss)
        return Evaluation(loss, metrics | trajectory_metrics(sample, trajectory, loss))

    def _weight(self, timestep: float, state: State | None) -> float:
        """λ: the coefficient, or the dual variable (kept on the CPU: reading it waits for nothing)."""
        if self.form == "constraint":
            return float((self.initial_state() if state is None else state)[DUAL])
        return value_at(self.coefficient, timestep)

    def _penalty(self, sample: Sample, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """R, and ‖J u_t‖² or its secant `[K, B, ...]`: 0 where a row has no direction, as u_t = 0 there."""

        def form(squared: Tensor) -> Tensor:
            return apply_form(self.form, squared, self.gain_bound)

        if self.secant:
            squared = self._squared_secants(sample, trajectory.deltas)
            return sample.mean(form(squared)), squared.detach()
        return self.penalty(sample, trajectory.deltas[: self.steps], trajectory.directions, form)

    def _squared_secants(self, sample: Sample, deltas: Tensor) -> Tensor:
        count = len(deltas)
        policy = sample.policy.repeat(count)
        outputs = policy((sample.obs + deltas).flatten(0, 1)).unflatten(0, (count, -1))
        chords = squared_distance(
            self.output, policy.distribution, outputs[:-1], outputs[1:], metric=self.metric
        )
        lengths = (deltas[1:] - deltas[:-1]).square().sum(-1)
        # At a corner of the set the step is zero up to rounding, and so is the chord.
        moved = lengths > torch.finfo(lengths.dtype).eps * deltas.square().sum(-1).amax(0)
        return torch.where(moved, chords / torch.where(moved, lengths, 1.0), 0.0)
