"""Penalties on the policy's Jacobian: what AAJR and its Jacobian rivals have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.checks import one_of
from marl_aajr.distributions import ActionDistribution
from marl_aajr.jacobian import BACKENDS, JVP_BACKENDS, Backend, JVPBackend, jvp, resolve_backend
from marl_aajr.objectives import EVERYTHING, Need
from marl_aajr.outputs import METRICS, OUTPUT_MAPS, Metric, OutputMap, check_output_map, squared_gain
from marl_aajr.policy import ModulePolicy, Policy
from marl_aajr.regularizers.adversary import Targeted
from marl_aajr.regularizers.base import Sample
from marl_aajr.schedules import Schedule

_OUTPUTS_WITH_METRIC = ("probs", "fisher")


@dataclass(frozen=True, kw_only=True)
class JacobianPenalty(Targeted):
    """A penalty on ‖J_φ z‖² for some directions z at some points.

    Attributes:
        coefficient: λ ≥ 0, weight of the penalty; a number or ``[[env_step, value], ...]``.
        output: φ, the output whose sensitivity counts: ``"logits"``, ``"mean"``, ``"probs"``, ``"fisher"``.
        metric: whether gradients flow through p or σ of the output map: ``"detached"`` or ``"full"``.
        backend: how Jacobian-vector products are computed: ``"auto"``, ``"forward"``, ``"double"``,
            ``"central"`` (:mod:`marl_aajr.jacobian`).
    """

    weights: ClassVar[tuple[str, ...]] = ("coefficient",)

    coefficient: Schedule = 1e-3
    output: OutputMap = "logits"
    metric: Metric = "detached"
    backend: JVPBackend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("output", self.output, OUTPUT_MAPS)
        one_of("metric", self.metric, METRICS)
        one_of("backend", self.backend, JVP_BACKENDS)
        if self.metric == "full" and self.output not in _OUTPUTS_WITH_METRIC:
            raise ValueError(
                f"expected metric='detached' with output={self.output!r}, which has no metric, got 'full'; "
                "use output='probs' or 'fisher'"
            )

    def check(self, distribution: ActionDistribution, *, offers: Collection[Need] = EVERYTHING) -> None:
        super().check(distribution, offers=offers)
        check_output_map(self.output, distribution)

    def fitted(self, policy: Policy, obs: Tensor, *, backends: Sequence[Backend] = BACKENDS) -> Self:
        return replace(self, backend=resolve_backend(policy, obs, self.backend, allowed=backends))

    def penalty(
        self, sample: Sample, points: Tensor, directions: Tensor, form: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The mean of ``form(‖J_φ z‖²)`` over T points and directions of each row, and the squares, detached.

        Args:
            sample: the minibatch.
            points: ``[T, B, ..., d]``.
            directions: z, the same shape; constants.
            form: elementwise.
        """
        policy = sample.policy
        if self.backend != "mlp":
            squared = self.squared_gains(sample, points, directions)
            return sample.mean(form(squared)), squared.detach()
        assert isinstance(policy, ModulePolicy)
        assert policy.mlp is not None
        weights = _weights(sample, points.shape[:-1]).flatten()
        squares = []

        def loss(outputs: Tensor, tangent: Tensor, rows: slice) -> Tensor:
            squared = squared_gain(self.output, policy.distribution, outputs, tangent, metric=self.metric)
            squares.append(squared.detach())
            return (weights[rows] * form(squared)).sum()

        total = policy.mlp.total(points.flatten(0, -2), directions.flatten(0, -2), loss)
        return total, torch.cat(squares).unflatten(0, points.shape[:-1])

    def squared_gains(self, sample: Sample, points: Tensor, directions: Tensor) -> Tensor:
        """‖J_φ z‖² at T points and directions of each row, ``[T, B, ..., d] -> [T, B, ...]``.

        All points pass the network as one batch.
        """
        count = len(points)
        policy = sample.policy.repeat(count)
        outputs, tangent = jvp(policy, points.flatten(0, 1), directions.flatten(0, 1), backend=self.backend)
        squared = squared_gain(self.output, policy.distribution, outputs, tangent, metric=self.metric)
        return squared.unflatten(0, (count, -1))


def _weights(sample: Sample, shape: torch.Size) -> Tensor:
    """w with ``sample.mean(v) = Σ w v``, which is linear."""
    if sample.mask is None and sample.shard is None:
        return sample.obs.new_full(shape, 1 / shape.numel())
    with torch.enable_grad():
        values = sample.obs.new_ones(shape).requires_grad_()
        (weights,) = torch.autograd.grad(sample.mean(values), values)
    return weights


def gain_metrics(sample: Sample, squared: Tensor) -> dict[str, Tensor]:
    """Mean and largest gain ‖J z‖ over the rows that count, from its square ``[T, B, ...]``."""
    gain = squared.detach().sqrt()
    counted = gain if sample.mask is None else torch.where(sample.mask, gain, 0.0)
    return {"gain_mean": sample.mean(gain), "gain_max": counted.amax()}
