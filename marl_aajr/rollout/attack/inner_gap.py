"""How much of the inner maximum the attack of training finds, and how easy a maximum it is to find.

gap          g of 50 steps with restarts  −  g of the K steps of training, on the same rows
smoothness   L_eff along the path of training (`marl_aajr.core.diagnostics`)
monotone     share of its steps that did not lower g

Under other words the strong adversary is the greedy one, which tries every synonym in every place; there is
no path between words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from marl_aajr.core.ascent import Trajectory, ascend, steepest
from marl_aajr.core.diagnostics import effective_smoothness
from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.core.objectives import KL, Clean, Margin
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.attack.on_words import OnWords
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

ROWS = 128
"""Rows that are measured, at most; fewer than an ascent takes at a time, so that each may have its own ε."""

STEPS, STEP_SIZE, STARTS = 50, 0.1, 5
"""Of the strong adversary: steps of a tenth of ε, from the clean observation and from random ones."""


def inner_gap(
    attack: RolloutAttack,
    policy: Policy,
    obs: Tensor,
    *,
    epsilon: float | Tensor,
    attacked: Tensor | None = None,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    """Sums over some of the attacked rows of `[N, d]`, and their number (`gap_rows`).

    `attacked [N]` says which these are (None: all): agents who have ended or wait see zeros, and nobody acts.

    `trained_gain` and `strong_gain` are g at the end of the K steps and the largest g that the strong
    adversary saw, each minus g at the clean observation; `smoothness` and `monotone` are means over the path.
    Objectives without a bound of their curvature have no `smoothness`.
    """
    index = torch.arange(len(obs), device=obs.device) if attacked is None else attacked.nonzero().squeeze(-1)
    if not len(index):
        return {}
    index = index[torch.randperm(len(index), generator=generator, device=obs.device)[:ROWS]]
    policy, obs = policy.select(index), obs[index]
    epsilon = epsilon[index] if isinstance(epsilon, Tensor) else epsilon
    with policy.fixed():
        found = attack.perturb(policy, obs, epsilon=epsilon, generator=generator, keep_path=True)
        clean = Clean(found.clean_outputs, values=policy.critic)
        g = attack.adversary.bind(policy, clean)
        with torch.no_grad():
            before, after = g(obs), g(obs + found.delta)
        if isinstance(attack, OnWords):
            with torch.no_grad():
                strong = g(obs + attack.strong(policy, obs, epsilon=epsilon, generator=generator))
        else:
            strong = _strong(attack, policy, obs, epsilon, generator)
        sums = {
            "gap_rows": torch.full_like(before.sum(), len(obs)),
            "trained_gain": (after - before).sum(),
            "strong_gain": (torch.maximum(strong, after) - before).sum(),
        }
        if not found.deltas:
            return sums
        path = _trajectory(torch.stack([*found.deltas, found.delta]), found, after)
        monotone = path.monotone.float().mean(0).sum()
        return sums | {"monotone": monotone} | _smoothness(attack, policy, obs, path, clean)


def _strong(
    attack: RolloutAttack,
    policy: Policy,
    obs: Tensor,
    epsilon: float | Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The largest g of many steps from several starts, `[N]`."""
    sets, best = attack.perturbations(epsilon), []
    for i in range(STARTS):
        from_clean = i == 0 and not attack.adversary.flat_at_zero
        trajectory = ascend(
            policy,
            obs,
            attack.adversary,
            sets,
            steps=STEPS,
            step_size=STEP_SIZE * epsilon,
            step=steepest(attack.norm),
            start=torch.zeros_like(obs) if from_clean else sets.sample(obs, generator=generator),
            check=False,
        )
        best.append(trajectory.values.amax(0))
    return torch.stack(best).amax(0)


def _trajectory(deltas: Tensor, found: Any, last: Tensor) -> Trajectory:
    gradients = torch.stack(found.gradients)
    norms = torch.linalg.vector_norm(gradients, dim=-1)
    has_direction = norms > torch.finfo(norms.dtype).tiny
    directions = gradients / norms.where(has_direction, torch.inf).unsqueeze(-1)
    return Trajectory(deltas, directions, norms, torch.stack([*found.values, last]), has_direction)


def _smoothness(
    attack: RolloutAttack, policy: Policy, obs: Tensor, path: Trajectory, clean: Clean
) -> dict[str, Tensor]:
    objective = attack.adversary
    if not isinstance(objective, KL | Margin) or isinstance(policy.distribution, DiagGaussian):
        return {}
    along = [
        effective_smoothness(policy, obs + delta, objective, direction, clean=clean)
        for delta, direction in zip(path.deltas[:-1], path.directions, strict=True)
    ]
    return {"smoothness": torch.stack(along).mean(0).sum()}
