"""Adversarially-Aligned Jacobian Regularization (F. Mumcu, Y. Yilmaz, arXiv 2603.04378).

    R(θ) = E_s [ (1/K) Σ_{t<K} ‖ J(s + sg[δ_t]) · sg[u_t] ‖₂² ]
    L(θ) = L_PPO + κ · (ℓ(s + sg[δ_K]) − ℓ(s)) + λ · R(θ)

δ_t and u_t come from projected gradient ascent (:mod:`marl_aajr.ascent`); sg is stop-gradient; ℓ is the
learner's policy loss. The penalty, the trajectory and the minimax loss are the paper's; the mixing weight κ
and the choice of output map are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.ascent import STEPS, Step, Trajectory, ascend
from marl_aajr.checks import one_of
from marl_aajr.distributions import ActionDistribution
from marl_aajr.jacobian import JVP_BACKENDS, JVPBackend, jvp
from marl_aajr.numerics import check_finite
from marl_aajr.objectives import OBJECTIVES, make_objective
from marl_aajr.outputs import METRICS, OUTPUT_MAPS, Metric, OutputMap, check_output_map, squared_gain
from marl_aajr.regularizers.base import Evaluation, Regularizer, Sample
from marl_aajr.schedules import Schedule, as_schedule, maximum, value_at
from marl_aajr.threat import Norm, PerturbationSet


@dataclass(frozen=True, kw_only=True)
class AAJR(Regularizer):
    """Penalise the policy's sensitivity along the directions in which an adversary pushes it.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty; a number or ``[[env_step, value], ...]``.
        adversarial_weight: κ in [0, 1], share of the policy loss taken at s + δ_K; a number or schedule.
        epsilon: radius of the perturbation set, in the units the policy network sees; number or schedule.
        norm: ``"linf"`` or ``"l2"``.
        steps: K, inner ascent steps.
        step_size: η as a fraction of ε for ``sign`` and ``normalized`` steps; η itself for ``raw``.
        step: ``"sign"``, ``"normalized"`` or ``"raw"`` (the paper's).
        objective: what the adversary maximises: ``"kl"``, ``"surrogate"`` or ``"margin"``.
        output: the output whose sensitivity counts: ``"logits"``, ``"mean"``, ``"probs"``, ``"fisher"``.
        metric: whether gradients flow through p or σ of the output map: ``"detached"`` or ``"full"``.
        backend: how Jacobian-vector products are computed: ``"auto"``, ``"forward"``, ``"double"``,
            ``"central"`` (:mod:`marl_aajr.jacobian`).
        sample_fraction: share of each minibatch that is regularised, drawn at random, in (0, 1].
        mask: per feature, whether the adversary can touch it.
        scale: per feature, the size of one unit of ε.
        low: lower bound of perturbed observations.
        high: upper bound of perturbed observations.

    Raises:
        ValueError: a setting out of its range, at construction.

    Example:
        >>> AAJR(coefficient=3e-3, epsilon=0.1, steps=3)
    """

    name: ClassVar[str] = "aajr"
    summary: ClassVar[str] = "directional Jacobian penalty along the adversary's ascent path (AAJR)"

    coefficient: Schedule = 1e-3
    adversarial_weight: Schedule = 0.0
    epsilon: Schedule = 0.1
    norm: Norm = "linf"
    steps: int = 3
    step_size: float = 0.5
    step: Step = "sign"
    objective: str = "kl"
    output: OutputMap = "logits"
    metric: Metric = "detached"
    backend: JVPBackend = "auto"
    sample_fraction: float = 0.5
    mask: tuple[bool, ...] | None = None
    scale: tuple[float, ...] | None = None
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("coefficient", "adversarial_weight", "epsilon"):
            object.__setattr__(self, name, as_schedule(getattr(self, name), name=name))
        for name in ("mask", "scale", "low", "high"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if maximum(self.adversarial_weight) > 1:
            raise ValueError(f"expected an adversarial_weight in [0, 1], got {self.adversarial_weight}")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"expected an integer steps ≥ 1, got {self.steps!r}")
        if not self.step_size > 0:
            raise ValueError(f"expected a step_size > 0, got {self.step_size!r}")
        if not 0 < self.sample_fraction <= 1:
            raise ValueError(f"expected a sample_fraction in (0, 1], got {self.sample_fraction!r}")
        one_of("step", self.step, STEPS)
        one_of("objective", self.objective, OBJECTIVES)
        one_of("output", self.output, OUTPUT_MAPS)
        one_of("metric", self.metric, METRICS)
        one_of("backend", self.backend, JVP_BACKENDS)
        self.perturbations(0)

    def perturbations(self, timestep: float) -> PerturbationSet:
        """Δ at an environment step."""
        return PerturbationSet(
            epsilon=value_at(self.epsilon, timestep),
            norm=self.norm,
            mask=self.mask,
            scale=self.scale,
            low=self.low,
            high=self.high,
        )

    def active(self, timestep: float) -> bool:
        return value_at(self.coefficient, timestep) > 0 or value_at(self.adversarial_weight, timestep) > 0

    def check(self, distribution: ActionDistribution) -> None:
        check_output_map(self.output, distribution)
        make_objective(self.objective).check(distribution)

    def evaluate(
        self, sample: Sample, *, timestep: float, generator: torch.Generator, check: bool = False
    ) -> Evaluation:
        sample = self._draw(sample, generator)
        if check:
            check_finite("the observations", sample.obs)
            check_finite("the policy's outputs", sample.outputs)
        trajectory = self._ascend(sample, timestep, generator, check)
        penalty, gain = self._penalty(sample, trajectory)
        loss = value_at(self.coefficient, timestep) * penalty
        kappa = value_at(self.adversarial_weight, timestep)
        if kappa > 0:
            loss = loss + kappa * self._adversarial_loss(sample, trajectory)
        if check:
            check_finite("the directional gain ‖J u‖", gain)
            check_finite("the adversarial policy loss", loss)
        return Evaluation(loss, _metrics(sample, trajectory, penalty.detach(), gain, loss))

    def _draw(self, sample: Sample, generator: torch.Generator) -> Sample:
        """A random share of the rows (of whole sequences where rows are sequences)."""
        rows = len(sample.obs)
        count = max(1, round(self.sample_fraction * rows))
        if count == rows:
            return sample
        order = torch.randperm(rows, generator=generator, device=generator.device)
        return sample.select(order[:count].to(sample.obs.device))

    def _ascend(self, sample: Sample, timestep: float, generator: torch.Generator, check: bool) -> Trajectory:
        perturbations = self.perturbations(timestep)
        relative = 1.0 if self.step == "raw" else perturbations.epsilon
        return ascend(
            sample.policy,
            sample.obs,
            make_objective(self.objective),
            perturbations,
            steps=self.steps,
            step_size=self.step_size * relative,
            step=self.step,
            generator=generator,
            clean=sample.clean,
            check=check,
        )

    def _penalty(self, sample: Sample, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """R and the gains ‖J u_t‖ ``[K, B, ...]``; the K points pass the network as one batch."""
        points = (sample.obs + trajectory.deltas[:-1]).flatten(0, 1)
        directions = trajectory.directions.flatten(0, 1)
        policy = sample.policy.repeat(self.steps)
        outputs, tangent = jvp(policy, points, directions, backend=self.backend)
        squared = squared_gain(self.output, policy.distribution, outputs, tangent, metric=self.metric)
        squared = squared.unflatten(0, (self.steps, -1))
        squared = torch.where(trajectory.has_direction, squared, torch.zeros_like(squared))
        return sample.mean(squared), squared.detach().sqrt()

    def _adversarial_loss(self, sample: Sample, trajectory: Trajectory) -> Tensor:
        """ℓ(s + sg[δ_K]) − ℓ(s), which turns ℓ(s) into (1 − κ) ℓ(s) + κ ℓ(s + δ_K)."""
        if sample.policy_loss is None:
            raise ValueError(
                "expected a learner with a policy loss for adversarial_weight > 0, got one without; "
                "set adversarial_weight=0"
            )
        perturbed = sample.policy(sample.obs + trajectory.deltas[-1])
        difference = sample.policy_loss(perturbed, sample) - sample.policy_loss(sample.outputs, sample)
        return sample.mean(difference)


def _metrics(
    sample: Sample, trajectory: Trajectory, penalty: Tensor, gain: Tensor, loss: Tensor
) -> dict[str, Tensor]:
    counted = gain if sample.mask is None else torch.where(sample.mask, gain, 0.0)
    nonfinite = ~torch.isfinite(torch.stack([loss.detach(), penalty, trajectory.values.sum()]))
    return {
        "penalty": penalty,
        "gain_mean": sample.mean(gain),
        "gain_max": counted.amax(),
        "objective_gain": sample.mean(trajectory.values[-1] - trajectory.values[0]),
        "monotone_fraction": sample.mean(trajectory.monotone.float()),
        "no_direction_fraction": 1 - sample.mean(trajectory.has_direction.float()),
        "nonfinite": nonfinite.sum(),
    }
