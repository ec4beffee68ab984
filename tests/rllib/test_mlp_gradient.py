"""The written-out gradient of a plain MLP by its weights is the one that autograd finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.rllib.lean.mlp_gradient import MLPGradient


def stack(*kinds: type[nn.Module], bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(6, 8, bias=bias)]
    for kind in kinds:
        layers += [kind(), nn.Linear(8, 8, bias=bias)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kinds",
    [(), (nn.Tanh,), (nn.ReLU,), (nn.Tanh, nn.ReLU, nn.Tanh, nn.Tanh)],
    ids=lambda kinds: "-".join(kind.__name__ for kind in kinds) or "linear",
)
def test_outputs_and_gradient_are_those_of_autograd(kinds: tuple[type[nn.Module], ...], bias: bool) -> None:
    torch.manual_seed(0)
    network = stack(*kinds, bias=bias)
    obs, delta = torch.randn(17, 6).double(), torch.randn(17, 8).double()
    buffers: dict[Tensor, Tensor] = {p: torch.full_like(p, float("nan")) for p in network.parameters()}
    expected = network(obs)
    gradient = torch.autograd.grad(expected, list(network.parameters()), delta)
    with torch.no_grad():
        written = MLPGradient(list(network), buffers)
        outputs, seen = written.forward(obs)
        written.backward(delta, seen)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(tuple(buffers.values()), gradient)


def test_weights_far_out_leave_no_gradient_and_no_nan() -> None:
    network = stack(nn.Tanh).float()
    obs = 1e4 * torch.randn(5, 6)
    buffers: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in network.parameters()}
    with torch.no_grad():
        written = MLPGradient(list(network), buffers)
        outputs, seen = written.forward(obs)
        written.backward(torch.ones(5, 8), seen)
        torch.testing.assert_close(outputs, network(obs))
    assert all(buffer.isfinite().all() for buffer in buffers.values())
    assert not next(iter(buffers.values())).any()
