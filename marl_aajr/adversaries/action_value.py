"""Q(s, a) of a frozen victim, and actions as it reads them: what `robust-sarsa` learns and descends."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import ActionDistribution, DiagGaussian, single_actions
from marl_aajr.core.mlp import PlainMLP

_HIDDEN = 64


class ActionValue(nn.Module):
    """Q(s, a): an MLP of two hidden ReLU layers on d and k features, with interval bounds in the action."""

    def __init__(self, features: int, action_features: int, *, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (features + action_features, _HIDDEN, _HIDDEN, 1)
        # Built on the meta device: layers that initialise themselves draw global random numbers.
        layers = [nn.Linear(i, o, device="meta") for i, o in pairwise(sizes)]
        for layer in layers:
            layer.to_empty(device=generator.device)
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        self.hidden, self.last = nn.ModuleList(layers[:-1]), layers[-1]

    @property
    def mlp(self) -> PlainMLP:
        """Q of both side by side, `[..., d + k] -> [..., 1]`, with its derivatives written out."""
        return PlainMLP([part for layer in self.hidden for part in (layer, nn.ReLU())] + [self.last])

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q, `[..., d], [..., k] -> [...]`."""
        h = torch.cat([obs, actions], -1)
        for layer in self.hidden:
            h = torch.relu(layer(h))
        value: Tensor = self.last(h)
        return value.squeeze(-1)

    def bounds(self, obs: Tensor, actions: Tensor, *, radius: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of Q(s, â) over ‖â − a‖_∞ ≤ radius, each `[...]`."""
        centre = torch.cat([obs, actions], -1)
        spread = torch.cat([torch.zeros_like(obs), torch.full_like(actions, radius)], -1)
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            centre, spread = layer(centre), spread @ layer.weight.abs().T
            low, high = torch.relu(centre - spread), torch.relu(centre + spread)
            centre, spread = (low + high) / 2, (high - low) / 2
        centre, spread = self.last(centre), spread @ self.last.weight.abs().T
        return (centre - spread).squeeze(-1), (centre + spread).squeeze(-1)


def encode(distribution: ActionDistribution, outputs: Tensor, actions: Tensor | None) -> Tensor:
    """Actions as Q reads them, `[..., k]`: one-hot for discrete ones, as they are for Gaussian ones.

    Without `actions` the expected ones at these outputs, differentiable: probabilities, or the mean.
    """
    if isinstance(distribution, DiagGaussian):
        return distribution.mode(outputs) if actions is None else actions
    logits = single_actions(distribution, outputs)
    if actions is None:
        return torch.cat([torch.softmax(y, -1) for y in logits], -1)
    each = actions.reshape(*outputs.shape[:-1], len(logits)).unbind(-1)
    pairs = zip(logits, each, strict=True)
    return torch.cat([nn.functional.one_hot(a, y.shape[-1]).to(y.dtype) for y, a in pairs], -1)


def pull_encoded(distribution: ActionDistribution, outputs: Tensor, cotangent: Tensor) -> Tensor:
    """c ↦ Jᵀ c of the expected actions of `encode` by the outputs, `[..., k] -> [..., m]`."""
    if isinstance(distribution, DiagGaussian):
        return torch.cat([cotangent, torch.zeros_like(cotangent)], -1)
    found, start = [], 0
    for logits in single_actions(distribution, outputs):
        p = torch.softmax(logits, -1)
        c = cotangent[..., start : start + logits.shape[-1]]
        found.append(p * (c - (p * c).sum(-1, keepdim=True)))
        start += logits.shape[-1]
    return torch.cat(found, -1)
