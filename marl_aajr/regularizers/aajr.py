"""Adversarially-Aligned Jacobian Regularization (F. Mumcu, Y. Yilmaz, arXiv 2603.04378).

    R(θ) = E_s [ (1/K) Σ_{t<K} ‖ J(s + sg[δ_t]) · sg[u_t] ‖₂² ]
    L(θ) = L_PPO + κ · (ℓ(s + sg[δ_K]) − ℓ(s)) + λ · R(θ)

δ_t and u_t come from projected gradient ascent (`marl_aajr.core.ascent`); sg is stop-gradient; ℓ is the
learner's policy loss. The penalty, the trajectory and the minimax loss are the paper's; the mixing weight κ,
the choice of output map and two of the three forms of the penalty are ours:

    squared      ‖J u‖²                         weight λ (the paper's)
    hinge        max(0, ‖J u‖ − γ)²             weight λ
    constraint   ‖J u‖²                         weight λ ← clip(λ + α (E‖J u‖² − γ²)) after every update

The constraint is E‖J u‖² ≤ γ², and its dual variable λ starts at `coefficient`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.ascent import Trajectory
from marl_aajr.core.checks import Schedule, maximum, one_of, positive, value_at
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import safe_sqrt
from marl_aajr.core.objectives import EVERYTHING, Need
from marl_aajr.regularizers.adversarial import check_adversarial_loss, require, trajectory_metrics
from marl_aajr.regularizers.augmentation import perturbed_loss
from marl_aajr.regularizers.jacobian_penalty import JacobianPenalty, gain_metrics
from marl_aajr.regularizers.kept_directions import attacked_rows, staleness
from marl_aajr.regularizers.sample import Context, LossTerm, Sample, State

Form = Literal["squared", "hinge", "constraint"]
FORMS: tuple[Form, ...] = get_args(Form)

Directions = Literal["fresh", "rollout", "epoch"]

DUAL = "dual"
"""Key of λ in the state and of its metric."""

ATTACKED = "attacked_minibatches"
"""Metric along the rollout's path: share of the minibatches with attacked rows; the others' means are 0."""

DUAL_STEP_SIZE = 1e-4
DUAL_BOUNDS = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AAJR(JacobianPenalty):
    """Penalise the policy's sensitivity along the directions in which an adversary pushes it.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty: a number or a schedule, `'[[env_step, value], ...]'`.
        form: penalty on ‖J u‖: `"squared"`, `"hinge"` or `"constraint"`. The module's docstring has their
            equations.
        gain_bound: γ ≥ 0, bound on ‖J u‖ of the forms `hinge` and `constraint`.
        dual_step_size: α > 0, step of the dual variable of `constraint`, which starts at `coefficient`; None:
            1e-4.
        dual_bounds: [low, high], range of the dual variable, 0 ≤ low < high; None: [0, 1].
        secant: whether the chord ‖f(s+δ_{t+1}) − f(s+δ_t)‖² / ‖δ_{t+1} − δ_t‖² replaces ‖J u‖². A different,
            cheaper penalty, without derivatives of the network.
        directions: path along which is penalised: `"fresh"`, of an ascent at each regularised minibatch (one
            an epoch by default), that of the `"rollout"`, which was played under attack: the learner then
            runs no ascent, the attack's settings say how far the path goes (also mask, scale and channels,
            where these are None here), and means are over the attacked rows; or `"epoch"`, of an ascent on
            the policy as it was when the epoch began. An epoch comes to each row once, so that this saves no
            ascent: it tells what staleness does.
        measured: whether gains are reported while λ = κ = 0, too: with `coefficient: 0`, those of plain PPO,
            which trains as ever, bit for bit.
        output: φ, output whose sensitivity counts: `"logits"`, `"mean"`, `"probs"`, `"fisher"` or
            `"margin"`: changes of the margins relative to these, which smaller logits leave as they are
            (`marl_aajr.core.output_maps`).
        metric: whether gradients flow through p, σ or w of the output map: `"full"`, or not: `"detached"`.
        backend: how Jacobian-vector products are computed: `"auto"`, `"mlp"`, `"forward"`, `"double"` or
            `"central"` (`marl_aajr.core.jacobian`).
        points: points δ_t of a row's path at which it is penalised: `"one"`, drawn uniformly, or `"all"` K.
            Both have the mean over all K as their expectation; one costs a K-th.
        adversarial_weight: κ in [0, 1], share of the policy loss taken at the perturbed observation s + δ_K;
            a number or a schedule.
        dual_clip: c > 1, bound on the adversarial loss of rows with Â < 0 (Ye 2020); None: no bound.
        objective: quantity that the inner adversary maximises: `"kl"`, `"surrogate"`, `"margin"` or
            `"value"`. In Python also a function `(outputs [B, ..., m], clean) -> [B, ...]`.
        steps: K ≥ 1, ascent steps of the inner adversary.
        step_size: η > 0, size of an ascent step as a fraction of ε: a number, a schedule, or `"auto"`, by the
            measured curvature. That is measured row by row (`marl_aajr.core.ascent`). For `raw` steps it is η
            itself.
        step: direction of an ascent step: `"sign"`, `"normalized"` or `"raw"` (the gradient itself).
        start: δ_0, start of the ascent: `"zero"` or `"random"`; None: random where the objective is flat at
            zero.
        epsilon: ε > 0, radius of the perturbation set, in the units that the network sees (of atla and
            adversarial_training: of the environment); a number or a schedule.
        norm: norm of the radius: `"linf"` or `"l2"`.
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
        low: lower bound of perturbed observations, a number or one per feature; None: none.
        high: upper bound of perturbed observations, a number or one per feature; None: none.

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
    directions: Directions = "fresh"
    measured: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adversarial_loss(self.adversarial_weight, self.dual_clip)
        one_of("form", self.form, FORMS)
        one_of("directions", self.directions, get_args(Directions))
        self._check_form()
        if self.secant and self.directions == "rollout":
            raise ValueError(
                "expected directions='fresh' with secant=True, got 'rollout': chords need the whole path"
            )
        if self.secant and self.backend != "auto":
            raise ValueError(
                f"expected no backend with secant=True, which needs no derivative, got {self.backend!r}; "
                "remove one of the two"
            )

    def _check_form(self) -> None:
        """Raise `ValueError` for settings that the form does not use, or lacks."""
        if self.form == "squared" and self.gain_bound is not None:
            raise ValueError(
                f"expected no gain_bound with form='squared', which has none, got {self.gain_bound!r}; "
                "use form='hinge' or 'constraint'"
            )
        if self.form != "squared":
            positive("gain_bound", self.gain_bound, zero=True, note=f" with form={self.form!r}")
        if self.form == "constraint":
            self._check_dual()
            return
        for name in ("dual_step_size", "dual_bounds"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"expected no {name} with form={self.form!r}, which has no dual variable, got {value!r}; "
                    "use form='constraint'"
                )

    def _check_dual(self) -> None:
        low, high = DUAL_BOUNDS if self.dual_bounds is None else self.dual_bounds
        if self.dual_step_size is None:
            object.__setattr__(self, "dual_step_size", DUAL_STEP_SIZE)
        object.__setattr__(self, "dual_bounds", (float(low), float(high)))
        positive("dual_step_size", self.dual_step_size)
        if not 0 <= low < high:
            raise ValueError(f"expected dual_bounds [low, high] with 0 ≤ low < high, got {[low, high]}")
        if not isinstance(self.coefficient, float):
            raise ValueError(
                "expected a number as coefficient with form='constraint', whose dual variable starts there "
                f"and then moves by itself, got the schedule {self.coefficient}"
            )
        if not low <= self.coefficient <= high:
            raise ValueError(
                f"expected a coefficient within dual_bounds {[low, high]}, got {self.coefficient}"
            )

    def active(self, timestep: float) -> bool:
        return self.measured or self.form == "constraint" or super().active(timestep)

    @property
    def perturbs_loss(self) -> bool:
        return maximum(self.adversarial_weight) > 0

    @property
    def rising(self) -> tuple[str, ...]:
        # The weight of a constraint moves by itself.
        return ("adversarial_weight",) if self.form == "constraint" else self.weights

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        if self.directions == "epoch":
            require({"epochs"}, offers, "directions='epoch'")
        if maximum(self.adversarial_weight) > 0:
            require({"policy_loss"}, offers, "adversarial_weight > 0")

    @property
    def takes_products(self) -> bool:
        return not self.secant

    def initial_state(self) -> dict[str, Tensor]:
        if self.form != "constraint":
            return {}
        return {DUAL: torch.tensor(self.coefficient, dtype=torch.float64)}

    def after_update(self, state: State, metrics: Mapping[str, float]) -> None:
        """λ ← clip(λ + α (E‖J u‖² − γ²)), in place; λ stays where nobody was attacked, and E is not known."""
        attacked = metrics.get(ATTACKED, 1.0)
        if self.form != "constraint" or not attacked:
            return
        assert self.gain_bound is not None
        assert self.dual_step_size is not None
        assert self.dual_bounds is not None
        low, high = self.dual_bounds
        excess = metrics["penalty"] / attacked - self.gain_bound**2
        moved = float(state[DUAL]) + self.dual_step_size * excess
        state[DUAL] = torch.full_like(state[DUAL], min(max(moved, low), high))

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        weight = value_at(self.coefficient, context.timestep)
        if self.form == "constraint":
            weight = float(context.state[DUAL])  # kept on the CPU: reading it waits for nothing
        if self.directions == "rollout":
            return self._along_kept_path(sample, context, weight)
        kappa = value_at(self.adversarial_weight, context.timestep)
        trajectory = self.attack(sample, context)
        with torch.set_grad_enabled(weight > 0 or self.form == "constraint"):
            if self.secant:
                squared = self.squared_secants(sample, trajectory.deltas)
                penalty, squared = sample.mean(self.penalties(squared)), squared.detach()
            else:
                points, directions = self.on_path(sample, context, trajectory.deltas, trajectory.directions)
                penalty, squared = self.mean_squared_gain(sample, points, directions, self.penalties)
        loss = weight * penalty
        metrics = {"penalty": penalty.detach(), **gain_metrics(sample, squared, context)}
        if self.form == "constraint":
            metrics[DUAL] = torch.tensor(weight)
        if kappa > 0:
            adversarial = perturbed_loss(sample, trajectory.deltas[-1], dual_clip=self.dual_clip)
            loss = loss + kappa * adversarial.loss
            metrics |= adversarial.metrics
        context.check_finite("the directional gain ‖J u‖", squared)
        context.check_finite("the adversarial policy loss", loss)
        if self.directions == "epoch":  # of an update's first minibatch alone it would always be 1
            metrics |= self._staleness(sample, context, trajectory.deltas[0], trajectory.directions[0])
        return LossTerm(loss, metrics | trajectory_metrics(sample, trajectory, loss, context))

    def attack(self, sample: Sample, context: Context) -> Trajectory:
        if self.directions != "epoch":
            return super().attack(sample, context)
        if (earlier := sample.earlier) is None:
            raise ValueError(
                "expected a learner that tells epochs apart for directions='epoch', got a sample without one "
                "(Sample.earlier); set directions='fresh'"
            )
        policy, obs = earlier.policy, earlier.obs
        with policy.fixed():
            known = replace(sample, policy=policy, obs=obs, outputs=policy.once(obs), values=earlier.values)
            return super().attack(known, context)

    def _along_kept_path(self, sample: Sample, context: Context, weight: float) -> LossTerm:
        """The penalty at the points of the rollout's path, over attacked rows; 0 without any."""
        metrics = {DUAL: torch.tensor(weight)} if self.form == "constraint" else {}
        if sample.path is None:
            nothing = sample.obs.new_zeros(())
            names = ("penalty", "gain_mean", "gain_max", ATTACKED)
            return LossTerm(nothing, metrics | dict.fromkeys(names, nothing))
        attacked, points, along = attacked_rows(sample, sample.path)
        with torch.set_grad_enabled(weight > 0 or self.form == "constraint"):
            penalty, squared = self.mean_squared_gain(attacked, points, along, self.penalties)
        context.check_finite("the directional gain ‖J u‖", squared)
        metrics |= {"penalty": penalty.detach(), ATTACKED: attacked.weight}
        metrics |= gain_metrics(attacked, squared, context)
        return LossTerm(weight * penalty, metrics | self._staleness(sample, context, points[0], along[0]))

    def _staleness(self, sample: Sample, context: Context, delta: Tensor, kept: Tensor) -> dict[str, Tensor]:
        return staleness(sample, self.adversary, self.around(sample, context.timestep), delta, kept)

    def penalties(self, squared: Tensor) -> Tensor:
        """The penalty of each row and step from ‖J u‖², which is 0 where a row has no direction u."""
        if self.form != "hinge":
            return squared
        assert self.gain_bound is not None
        return (safe_sqrt(squared) - self.gain_bound).clamp_min(0).square()
