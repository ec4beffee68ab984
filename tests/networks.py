"""Small policies for closed forms and gradient checks, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.policy import ModulePolicy

DISTRIBUTIONS: tuple[ActionDistribution, ...] = (
    Categorical(5),
    MultiCategorical((2, 3)),
    DiagGaussian(3),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_policy(
    weight: Tensor, distribution: ActionDistribution | None = None, bias: Tensor | None = None
) -> ModulePolicy:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return ModulePolicy(layer, distribution or Categorical(weight.shape[0]))


def tanh_policy(
    distribution: ActionDistribution, *, features: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> ModulePolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, distribution.num_inputs)
        ).to(dtype)
    return ModulePolicy(network, distribution)


def parameters(policy: ModulePolicy) -> list[nn.Parameter]:
    assert isinstance(policy.module, nn.Module)
    return list(policy.module.parameters())


def observations(
    rows: int = 7, features: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.randn(rows, features, generator=generator(seed), dtype=dtype)


def random_actions(distribution: ActionDistribution, outputs: Tensor, *, seed: int = 1) -> Tensor:
    return distribution.sample(outputs.detach(), generator=generator(seed))
