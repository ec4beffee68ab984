"""Policies for Signs that are broken on purpose: what an evaluation must find, and what must not fool it.

All see `[sign, 0]` and should name the sign. Logits are (−z, z) for some z: z > 0 says +1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _logits(z: Tensor) -> Tensor:
    return torch.stack([-z, z], -1)


class Trigger(nn.Module):
    """Right, and out of reach, unless the second feature, which is always 0, is within `width` of 0.07."""

    def __init__(self, *, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, obs: Tensor) -> Tensor:
        pulled = torch.exp(-((obs[..., 1] - 0.07) / self.width).square())
        return _logits(torch.tanh(3 * obs[..., 0]) * (1 - 3 * pulled))


class Quantized(nn.Module):
    """Right for x = ±1, wrong when noise carries it over zero; rounded, so that its gradient is zero."""

    def forward(self, obs: Tensor) -> Tensor:
        return _logits(torch.round(8 * obs[..., 0]) / 8 + torch.round(8 * obs[..., 1]) / 16)


class Saturated(nn.Module):
    """So sure that probabilities are 0 and 1 in float32: the KL divergence has no gradient."""

    def forward(self, obs: Tensor) -> Tensor:
        return _logits(1e4 * obs[..., 0])


class Constant(nn.Module):
    """Always says +1, whatever it sees."""

    def forward(self, obs: Tensor) -> Tensor:
        return _logits(torch.ones_like(obs[..., 0])) + 0 * obs[..., :1]


class Noisy(nn.Module):
    """Adds a random number at every call: a randomised defence."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, obs: Tensor) -> Tensor:
        noise = torch.rand(obs.shape[:-1], generator=self.generator) - 0.5
        return _logits(obs[..., 0] + 0.1 * noise)

    def __deepcopy__(self, memo: object) -> Noisy:
        return Noisy()


class Weighted(nn.Module):
    """z = x₀ + 0.5 x₁: in the L∞ ball the worst δ is −ε sign(x₀) (1, 1), and it errs iff 1.5 ε > 1."""

    def forward(self, obs: Tensor) -> Tensor:
        return _logits(obs[..., 0] + 0.5 * obs[..., 1])
