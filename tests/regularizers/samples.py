"""Minibatches for regularizers: small policies, every column filled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import (
    REGULARIZERS,
    LossTerm,
    Regularizer,
    Sample,
    SpectralNormalization,
    State,
    make_regularizer,
    ppo_policy_loss,
)
from tests.networks import generator, observations, random_actions

EXAMPLES: dict[str, dict[str, object]] = {
    "sum": {
        "members": [
            {"name": "aajr", "sample_fraction": 1.0},
            {"name": "aajr", "sample_fraction": 1.0, "output": "fisher"},
        ]
    },
}
"""Settings for the regularizers that have no default."""

ANY_POLICY = [
    name for name, cls in REGULARIZERS.items() if name != SpectralNormalization.name and not cls.needs_layers
]
"""Those that add a term to the loss of any policy."""


def example(name: str) -> Regularizer:
    """A regularizer of this name, on whole minibatches where it takes a share."""
    regularizer = make_regularizer(name, **EXAMPLES.get(name, {}))
    if hasattr(regularizer, "sample_fraction"):
        return replace(regularizer, sample_fraction=1.0)  # type: ignore[type-var]
    return regularizer


def critic(obs: Tensor) -> Tensor:
    return -obs.square().sum(-1)


def sample_of(
    policy: ModulePolicy, *, rows: int = 7, features: int = 6, mask: Tensor | None = None
) -> Sample:
    obs = observations(rows, features)
    outputs = policy(obs)
    actions = random_actions(policy.distribution, outputs)
    log_probs = policy.distribution.log_prob(outputs, actions).detach()
    advantages = observations(rows, 1, seed=8)[:, 0]
    return Sample(policy, obs, outputs, mask, actions, log_probs, advantages, ppo_policy_loss(0.2), critic)


def evaluate(
    regularizer: Regularizer,
    sample: Sample,
    *,
    seed: int = 0,
    timestep: float = 0,
    state: State | None = None,
) -> LossTerm:
    return regularizer.evaluate(sample, timestep=timestep, generator=generator(seed), state=state)


def gradients(evaluation: LossTerm, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    """Of the loss, with zeros where a parameter does not take part."""
    found = torch.autograd.grad(evaluation.loss, parameters, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
