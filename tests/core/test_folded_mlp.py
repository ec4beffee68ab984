"""Plain MLPs with their constants folded into the layers compute what the layers compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from marl_aajr.core.folded_mlp import FoldedMLP


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("between", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("width", [7, 128])
def test_outputs_and_products_are_autograds(width: int, between: Any, bias: bool) -> None:
    """Also where another library multiplies: wide layers."""
    torch.manual_seed(0)
    sizes = ((5, width), (width, width), (width, 3))
    linear = [nn.Linear(*size, bias=bias) for size in sizes]
    layers = nn.Sequential(linear[0], between(), linear[1], between(), linear[2])
    x, cotangent = torch.randn(200, 5), torch.randn(200, 3)
    outputs, pull = FoldedMLP(list(layers)).vjp(x)
    point = x.clone().requires_grad_()
    expected = layers(point)
    torch.testing.assert_close(outputs, expected.detach(), atol=2e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(expected, point, cotangent)
    torch.testing.assert_close(pull(cotangent), gradient, atol=2e-6, rtol=1e-4)
