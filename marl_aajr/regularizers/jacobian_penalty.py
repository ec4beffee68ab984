"""Penalties on the policy's Jacobian: what AAJR and its Jacobian rivals have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from marl_aajr.core.checks import Schedule, one_of
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.core.jacobian import BACKENDS, JVP_BACKENDS, Backend, JVPBackend, jvp, resolve_backend
from marl_aajr.core.objectives import EVERYTHING, Need, Objective, ObjectiveLike, make_objective
from marl_aajr.core.output_maps import (
    METRICS,
    OUTPUT_MAPS,
    OUTPUT_MAPS_WITH_METRIC,
    Metric,
    OutputMap,
    check_output_map,
    squared_distance,
    squared_gain,
)
from marl_aajr.core.policy import ALL_ROWS, Policy, point_blocks
from marl_aajr.regularizers.adversarial import Adversarial
from marl_aajr.regularizers.sample import Context, Sample

Points = Literal["one", "all"]


@dataclass(frozen=True, kw_only=True)
class JacobianPenalty(Adversarial):
    """A penalty on ‖J_φ z‖² for some directions z at some points.

    Attributes:
        objective: quantity that the inner adversary maximises: `"kl"`, `"surrogate"`, `"margin"` or
            `"value"`. In Python also a function `(outputs [B, ..., m], clean) -> [B, ...]`.
        coefficient: λ ≥ 0, weight of the penalty: a number or a schedule, `'[[env_step, value], ...]'`.
        output: φ, output whose sensitivity counts: `"logits"`, `"mean"`, `"probs"`, `"fisher"` or
            `"margin"`: changes of the margins relative to these, which smaller logits leave as they are
            (`marl_aajr.core.output_maps`).
        metric: whether gradients flow through p, σ or w of the output map: `"full"`, or not: `"detached"`.
        backend: how Jacobian-vector products are computed: `"auto"`, `"mlp"`, `"forward"`, `"double"` or
            `"central"` (`marl_aajr.core.jacobian`).
        points: points δ_t of a row's path at which it is penalised: `"one"`, drawn uniformly, or `"all"` K.
            Both have the mean over all K as their expectation; one costs a K-th.
    """

    weights: ClassVar[tuple[str, ...]] = ("coefficient",)

    objective: ObjectiveLike = "kl"
    coefficient: Schedule = 1e-3
    output: OutputMap = "logits"
    metric: Metric = "detached"
    backend: JVPBackend = "auto"
    points: Points = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("output", self.output, OUTPUT_MAPS)
        one_of("metric", self.metric, METRICS)
        one_of("backend", self.backend, JVP_BACKENDS)
        one_of("points", self.points, get_args(Points))
        if self.metric == "full" and self.output not in OUTPUT_MAPS_WITH_METRIC:
            raise ValueError(
                f"expected metric='detached' with output={self.output!r}, which has no metric, got 'full'; "
                "use output='probs', 'fisher' or 'margin'"
            )

    @property
    def adversary(self) -> Objective:
        return make_objective(self.objective)

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        check_output_map(self.output, distribution)

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        fitted = super().fitted(policy, obs, backends=backends)
        if not self.takes_products:
            return fitted
        with policy.fixed():
            return replace(fitted, backend=resolve_backend(policy, obs, self.backend, allowed=backends))

    @property
    def takes_products(self) -> bool:
        """Whether Jacobian-vector products are what is penalised."""
        return True

    def on_path(self, sample: Sample, context: Context, *paths: Tensor) -> list[Tensor]:
        """The entries of paths `[≥ K, B, ..., d]` at each row's `points`, the same in all."""
        paths = tuple(path[: self.steps] for path in paths)
        if self.points == "all":
            return list(paths)

        def draw(obs: Tensor) -> Tensor:
            shape = obs.shape[:-1]
            return torch.randint(self.steps, shape, generator=context.generator, device=obs.device)

        step = sample.draw(draw).unsqueeze(-1).expand_as(paths[0][:1])
        return [path.gather(0, step) for path in paths]

    def mean_squared_gain(
        self, sample: Sample, deltas: Tensor, directions: Tensor, form: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The mean of `form(‖J_φ z‖²)` at T points s + δ of each row, and the squares, detached.

        Points pass the network in blocks, each of which is differentiated and forgotten before the next:
        memory does not grow with T, and what a small network needs stays in the processor's cache.

        Args:
            sample: the minibatch.
            deltas: δ, `[T, B, ..., d]`.
            directions: z, the same shape; constants.
            form: elementwise.
        """
        blocks = list(point_blocks(deltas))
        parameters = [p for p in sample.policy.parameters() if p.requires_grad] if len(blocks) > 1 else []
        # The gradient by what lies before the observations (an embedding's) is not among those.
        if not parameters or sample.obs.requires_grad or not torch.is_grad_enabled():
            squared = self.squared_gains(sample.policy, sample.obs + deltas, directions)
            return sample.mean(form(squared)), squared.detach()
        weights = _weights(sample, deltas.shape[:-1])
        squares, total = torch.empty_like(weights), weights.new_zeros(())
        every_row = torch.arange(len(sample.obs), device=sample.obs.device)
        gradients: dict[Tensor, Tensor] = {}
        for part in blocks:
            _, rows = part
            policy = sample.policy if rows == ALL_ROWS else sample.policy.select(every_row[rows])
            squared = self.squared_gains(policy, sample.obs[rows] + deltas[part], directions[part])
            loss = (weights[part] * form(squared)).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else []
            for parameter, gradient in zip(parameters, found, strict=False):
                if gradient is not None:
                    known = gradients.get(parameter)
                    gradients[parameter] = gradient if known is None else known.add_(gradient)
            squares[part] = squared.detach()
            total += loss.detach()
        return _Known.apply(total, list(gradients.values()), *gradients) if gradients else total, squares

    def squared_gains(self, policy: Policy, points: Tensor, directions: Tensor) -> Tensor:
        """‖J_φ z‖² at T points and directions of each row, `[T, B, ..., d] -> [T, B, ...]`.

        All points pass the network as one batch.
        """
        count = len(points)
        repeated = policy.repeat(count)
        outputs, tangent = jvp(repeated, points.flatten(0, 1), directions.flatten(0, 1), backend=self.backend)
        squared = squared_gain(self.output, policy.distribution, outputs, tangent, metric=self.metric)
        return squared.unflatten(0, (count, -1))

    def squared_secants(self, sample: Sample, deltas: Tensor) -> Tensor:
        """‖φ(s + δ_{t+1}) − φ(s + δ_t)‖² / ‖δ_{t+1} − δ_t‖², `[K, B, ...]`; 0 where nothing moved."""
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


def _weights(sample: Sample, shape: torch.Size) -> Tensor:
    """w with `sample.mean(v) = Σ w v`, which is linear."""
    if sample.mask is None and sample.shard is None:
        return sample.obs.new_full(shape, 1 / shape.numel())
    with torch.enable_grad():
        values = sample.obs.new_ones(shape).requires_grad_()
        (weights,) = torch.autograd.grad(sample.mean(values), values)
    return weights


class _Known(torch.autograd.Function):
    """A scalar whose gradient by the parameters is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(weight * gradient for gradient in ctx.saved_tensors)


def gain_metrics(sample: Sample, squared: Tensor, context: Context) -> dict[str, Tensor]:
    """Mean and largest gain ‖J z‖ over the rows that count, from its square `[T, B, ...]`."""
    if not context.measure:
        return {}
    gain = squared.detach().sqrt()
    counted = gain if sample.mask is None else torch.where(sample.mask, gain, 0.0)
    return {"gain_mean": sample.mean(gain), "gain_max": counted.amax()}
