"""The end of an ascent alone, for whoever acts on it: `marl_aajr.core.ascent` without its trajectory.

K gradients are K forward and K backward passes, and nothing else: where the ascent begins at δ = 0, its first
pass is the clean one, and nobody asks for g(δ_K), because the policy is asked for its outputs there anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.ascent import Climb, Step, largest
from marl_aajr.core.bound_objective import OutputObjective
from marl_aajr.core.mlp_kernel import MLPKernel
from marl_aajr.core.objectives import Clean, Objective, margin_of_one_choice
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet, PerturbationSets


@dataclass(frozen=True)
class Ascended:
    """The end of an ascent; all detached.

    Attributes:
        delta: δ_K, `[B, d]`.
        clean_outputs: distribution inputs π(·|s), `[B, m]`.
        deltas: δ_0 … δ_{K−1}, each `[B, d]`; empty where the path is not kept.
        gradients: v_0 … v_{K−1}, each `[B, d]`; likewise.
        values: g(δ_0) … g(δ_{K−1}), each `[B]`.
    """

    delta: Tensor
    clean_outputs: Tensor
    deltas: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def end_of_ascent(
    policy: Policy,
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float | Tensor,
    step: Step,
    start: Tensor | None = None,
    keep_path: bool = False,
) -> Ascended:
    """Find where an adversary would push each observation `[B, d]`, unchecked; see `ascend` for the rest.

    Args:
        policy: the policy under attack.
        obs: clean observations s.
        objective: g, what the adversary maximises.
        perturbations: the admissible set Δ.
        steps: K ≥ 1.
        step_size: η in the units of the observations; `[B, 1]` for a size of each row's own.
        step: `"sign"`, `"normalized"` or `"raw"`.
        start: δ_0, in Δ; None: δ_0 = 0.
        keep_path: whether δ_t and v_t are kept.
    """
    if start is None and step == "sign" and margin_of_one_choice(objective, policy) and perturbations.is_cube:
        kernel = policy.kernel(obs)
        if kernel is not None:
            return _climbed(kernel, obs, perturbations, steps=steps, step_size=step_size, keep_path=keep_path)
    if start is None:
        outputs, pull = policy.vjp(obs)
        delta = torch.zeros_like(obs)
    else:
        with torch.no_grad():
            outputs = policy(obs)
        delta = start
    clean = Clean(outputs, values=policy.critic)
    climb = Climb(policy, objective, clean, obs, perturbations, step=step, step_size=step_size, check=False)
    deltas, gradients = [], []
    for t in range(steps):
        if t == 0 and start is None and isinstance(climb.g, OutputObjective):
            value, by_outputs = climb.g.value_and_gradient(outputs)
            v = climb.taken(delta, value, pull(by_outputs))
        else:
            v = climb.gradient(delta)
        if keep_path:
            deltas.append(delta)
            gradients.append(v)
        delta = climb.next_point(delta, v)
    return Ascended(delta, outputs, tuple(deltas), tuple(gradients), tuple(climb.values))


def _climbed(
    kernel: MLPKernel,
    obs: Tensor,
    perturbations: PerturbationSet,
    *,
    steps: int,
    step_size: float | Tensor,
    keep_path: bool,
) -> Ascended:
    """The same in one call, for small networks, where most of the time goes by between the operations."""
    radii, sizes = (
        each.to(obs).flatten() if isinstance(each, Tensor) else obs.new_full((len(obs),), each)
        for each in (perturbations.epsilon, step_size)
    )
    delta, outputs, margins, *path = kernel.climb(obs, radii, sizes, steps=steps, keep_path=keep_path)
    deltas, gradients = (tuple(part) for part in path) if keep_path else ((), ())
    return Ascended(delta, outputs, deltas, gradients, tuple(margins))


def from_both_sides(
    policy: Policy,
    obs: Tensor,
    objective: Objective,
    perturbations: PerturbationSet,
    *,
    start: Tensor,
    how: dict[str, Any],
) -> Ascended:
    """The better of the ascents from a start and from its mirror image."""
    if isinstance(perturbations, PerturbationSets):
        perturbations = PerturbationSets.of(perturbations, perturbations.epsilon.repeat(2, 1))
        if isinstance(how["step_size"], Tensor):
            how = how | {"step_size": how["step_size"].repeat(2, 1)}
    both, everybody = obs.repeat(2, 1), policy.repeat(2)
    start = perturbations.project(torch.cat([start, -start]), both)
    found = end_of_ascent(everybody, both, objective, perturbations, start=start, **how)
    with torch.no_grad():
        g = objective.bind(everybody, Clean(found.clean_outputs, values=everybody.critic))
        value = g(both + found.delta).view(2, -1)

    def better(rows: Tensor) -> Tensor:
        return largest(rows.unflatten(0, (2, -1)), value)[0]

    return Ascended(
        delta=better(found.delta),
        clean_outputs=found.clean_outputs[: len(obs)],
        deltas=tuple(map(better, found.deltas)),
        gradients=tuple(map(better, found.gradients)),
        values=tuple(better(part.unsqueeze(-1)).squeeze(-1) for part in found.values),
    )
