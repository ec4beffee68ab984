"""Jacobian penalties that do not look where the adversary goes: AAJR's controls and rivals.

    random_direction    E‖J z‖²     z uniform on the unit sphere: AAJR without its direction
    frobenius           ‖J‖_F²      estimated by random projections (Hoffman 2019)
    spectral            ‖J‖_op²     by power iteration: the global constraint, at the sampled points

Each is taken at the clean observations, or at the same points s + δ_t as AAJR. Features that the adversary
cannot touch do not count: J is the Jacobian without their columns.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from marl_aajr.core.checks import one_of, value_at, whole
from marl_aajr.core.output_maps import cotangent
from marl_aajr.regularizers.adversarial import trajectory_metrics
from marl_aajr.regularizers.jacobian_penalty import JacobianPenalty, gain_metrics
from marl_aajr.regularizers.sample import Context, LossTerm, Sample

At = Literal["clean", "trajectory"]
Projection = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class JacobianNorm(JacobianPenalty):
    """A penalty on the size of the Jacobian as a whole.

    Attributes:
        at: points where the Jacobian is taken: `"clean"` (s; the adversary's settings have no effect) or
            `"trajectory"` (s + δ_t for t < K, the points of AAJR).
    """

    at: At = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("at", self.at, get_args(At))

    def loss_term(self, sample: Sample, context: Context) -> LossTerm:
        points, trajectory = sample.obs.unsqueeze(0), None
        if self.at == "trajectory":
            trajectory = self.attack(sample, context)
            points = sample.obs + self.on_path(sample, context, trajectory.deltas)[0]
        squared = self.squared_norms(sample, points, context.generator)
        context.check_finite("the squared norm of the Jacobian", squared)
        penalty = sample.mean(squared)
        loss = value_at(self.coefficient, context.timestep) * penalty
        metrics = {"penalty": penalty.detach(), **gain_metrics(sample, squared, context)}
        if trajectory is not None:
            metrics |= trajectory_metrics(sample, trajectory, loss, context)
        return LossTerm(loss, metrics)

    @abstractmethod
    def squared_norms(self, sample: Sample, points: Tensor, generator: torch.Generator) -> Tensor:
        """An estimate of the squared norm at T points of each row, `[T, B, ..., d] -> [T, B, ...]`."""

    def noise(self, sample: Sample, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal directions, 0 where the adversary cannot reach, `[count, B, ..., d]`."""
        return self.reachable(sample, _normal(sample, count, sample.obs.shape[-1], generator))

    def reachable(self, sample: Sample, directions: Tensor) -> Tensor:
        """z without the features that the adversary cannot touch."""
        if self.mask is None and self.channels is None:
            return directions
        preconditioner = self.around(sample, 0).preconditioner(sample.obs)
        assert preconditioner is not None
        return torch.where(preconditioner > 0, directions, 0.0)


@dataclass(frozen=True, kw_only=True)
class RandomDirection(JacobianNorm):
    """‖J z‖² along directions drawn uniformly from the unit sphere: what is left of AAJR without its u_t."""

    name: ClassVar[str] = "random_direction"
    summary: ClassVar[str] = "Jacobian penalty along random directions (ablation of AAJR's direction)"

    def squared_norms(self, sample: Sample, points: Tensor, generator: torch.Generator) -> Tensor:
        return self.squared_gains(sample.policy, points, _unit(self.noise(sample, len(points), generator)))


@dataclass(frozen=True, kw_only=True)
class Frobenius(JacobianNorm):
    """‖J‖_F² by random projections.

    `"input"` (Hutchinson): E‖J z‖² with z ~ N(0, I). `"output"`: m · E‖vᵀ J‖² with v uniform on the unit
    sphere of the m outputs, one vector-Jacobian product each; it needs a second derivative of the network.

    Attributes:
        projection: side of the Jacobian that random vectors multiply: `"input"` or `"output"`.
        projections: number of random projections that are averaged, ≥ 1.

    Source: Hoffman 2019 (arXiv 1908.02729, algorithm 1): output projections of the logits at clean inputs,
    with weight λ_JR/2 where `coefficient` is the whole weight.
    """

    name: ClassVar[str] = "frobenius"
    summary: ClassVar[str] = "Frobenius norm of the Jacobian by random projections (Hoffman 2019)"

    projection: Projection = "output"
    projections: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("projection", self.projection, get_args(Projection))
        whole("projections", self.projections)
        if self.projection == "output" and self.backend != "auto":
            raise ValueError(
                f"expected no backend with projection='output', which takes no Jacobian-vector product, got "
                f"{self.backend!r}; use projection='input'"
            )

    @property
    def takes_products(self) -> bool:
        return self.projection == "input"

    def squared_norms(self, sample: Sample, points: Tensor, generator: torch.Generator) -> Tensor:
        count = len(points)
        if self.projection == "input":
            directions = self.noise(sample, count * self.projections, generator)
            repeated = points.repeat(self.projections, *(1 for _ in points.shape[1:]))
            squared = self.squared_gains(sample.policy, repeated, directions)
            return squared.unflatten(0, (self.projections, count)).mean(0)
        policy = sample.policy.repeat(count)
        with torch.enable_grad():
            variable = points.flatten(0, 1).detach().requires_grad_(True)
            outputs = policy(variable)
        total = torch.zeros(outputs.shape[:-1], dtype=outputs.dtype, device=outputs.device)
        for _ in range(self.projections):
            v = _unit(_normal(sample, count, outputs.shape[-1], generator))
            if sample.mask is not None:
                # What is padded behind a sequence follows from its observations: it would count through them.
                v = torch.where(sample.mask.unsqueeze(-1), v, 0.0)
            v = v.flatten(0, 1)
            w = cotangent(self.output, policy.distribution, outputs, v, metric=self.metric)
            (pulled,) = torch.autograd.grad(outputs, variable, w, create_graph=True)
            total = total + self.reachable(sample, pulled).square().sum(-1)
        scale = outputs.shape[-1] / self.projections
        return (scale * total).unflatten(0, (count, -1))


@dataclass(frozen=True, kw_only=True)
class Spectral(JacobianNorm):
    """‖J‖_op² by power iteration: z ← JᵀJ z / ‖·‖ from a random z, then ‖J z‖² with z held fixed.

    Never more than the operator norm. The vectors are fresh for every minibatch: its points are others, and a
    vector kept from the last one would say nothing of theirs.

    Attributes:
        iterations: power iterations, ≥ 1; each costs a Jacobian-vector and a vector-Jacobian product.

    Source: the global constraint that arXiv 2603.04378 compares its own with, at the sampled points.
    """

    name: ClassVar[str] = "spectral"
    summary: ClassVar[str] = "operator norm of the Jacobian by power iteration (the global constraint)"

    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("iterations", self.iterations)

    def squared_norms(self, sample: Sample, points: Tensor, generator: torch.Generator) -> Tensor:
        z = _unit(self.noise(sample, len(points), generator))
        for _ in range(self.iterations):
            with torch.enable_grad():
                variable = z.detach().requires_grad_(True)
                gains = self.squared_gains(sample.policy, points, self.reachable(sample, variable))
                # ½ ∂‖J z‖²/∂z = JᵀJ z: a Jacobian-vector product and its transpose.
                counted = gains if sample.mask is None else torch.where(sample.mask, gains, 0.0)
                (pulled,) = torch.autograd.grad(counted.sum(), variable)
            z = _unit(pulled)
        return self.squared_gains(sample.policy, points, self.reachable(sample, z.detach()))


def _normal(sample: Sample, count: int, width: int, generator: torch.Generator) -> Tensor:
    """Standard normal vectors for every row, `[count, B, ..., width]`."""

    def draw(obs: Tensor) -> Tensor:
        return obs.new_empty(len(obs), count, *obs.shape[1:-1], width).normal_(generator=generator)

    return sample.draw(draw).movedim(1, 0)


def _unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.clamp_min(torch.finfo(vectors.dtype).tiny)
