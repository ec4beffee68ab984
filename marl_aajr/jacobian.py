"""Jacobian-vector products of a policy, exact and never materialised.

Two ways that agree in tests:

    forward   dual numbers: one forward pass carries tangents; exact. CPU ``nn.LSTM`` and some fused
              attention kernels have no forward derivative. PyTorch's dual levels are process-global.
    central   (f(x + h u) − f(x − h u)) / 2h: any module; error O(h²) plus rounding O(ε_machine / h).

Both are differentiable with respect to the parameters: the penalty is trained through them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from marl_aajr.checks import one_of
from marl_aajr.policy import Policy

JVPBackend = Literal["forward", "central"]


def jvp_forward(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), J(x) u) by forward-mode dual numbers; ``[B, ..., d] -> [B, ..., m]`` twice."""
    with forward_ad.dual_level():
        dual = policy(forward_ad.make_dual(obs, direction))
        outputs, tangent = forward_ad.unpack_dual(dual)
    if tangent is None:  # the outputs do not depend on the observations
        tangent = torch.zeros_like(outputs)
    return outputs, tangent


def jvp_central(policy: Policy, obs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x) + O(h²), J(x) u + O(h²)) by a central difference; both ends in one batch.

    h = ε_machine^⅓ · max(1, rms(x)) per row, which balances truncation against rounding.
    """
    rms = obs.square().mean(-1, keepdim=True).sqrt()
    h = torch.finfo(obs.dtype).eps ** (1 / 3) * rms.clamp_min(1)
    ends = torch.cat([obs + h * direction, obs - h * direction])
    ahead, behind = policy.repeat(2)(ends).chunk(2)
    return (ahead + behind) / 2, (ahead - behind) / (2 * h)


BACKENDS: dict[str, Callable[[Policy, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward": jvp_forward,
    "central": jvp_central,
}


def jvp(
    policy: Policy, obs: Tensor, direction: Tensor, *, backend: JVPBackend = "forward"
) -> tuple[Tensor, Tensor]:
    """Outputs and directional derivative of ``policy`` at ``obs`` along ``direction``.

    Args:
        policy: f, ``[B, ..., d] -> [B, ..., m]``.
        obs: x, ``[B, ..., d]``.
        direction: u, same shape; not normalised here.
        backend: ``"forward"`` or ``"central"``.

    Returns:
        f(x) and J(x) u, both ``[B, ..., m]``.
    """
    one_of("backend", backend, BACKENDS)
    return BACKENDS[backend](policy, obs, direction)
