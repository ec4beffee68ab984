"""The compiled loss of one discrete action is PPO's, and its gradient autograd's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.mlp_kernel import MLPKernel
from marl_aajr.rllib.lean.ppo_kernel import served
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients, PPORows, loss_and_gradient, ppo_parts

pytestmark = pytest.mark.skipif(not MLPKernel.serves([nn.Linear(1, 1)]), reason="no C++ compiler")

COEFFICIENTS = PPOCoefficients(clip=0.3, vf_clip=4.0, vf_loss=0.7, entropy=0.02)


def some_rows(count: int, choices: int) -> PPORows:
    torch.manual_seed(count)
    return PPORows(
        inputs=3 * torch.randn(count, choices),
        values=3 * torch.randn(count),
        actions=torch.randint(choices, (count,)),
        log_probs=-2 * torch.rand(count),
        advantages=torch.randn(count),
        value_targets=torch.randn(count),
    )


def check(rows: PPORows, coefficients: PPOCoefficients = COEFFICIENTS) -> None:
    distribution = Categorical(rows.inputs.shape[1])
    assert served(distribution, rows.inputs)
    found = loss_and_gradient(distribution, rows, coefficients)
    leaves = [rows.inputs.double().requires_grad_(), rows.values.double().requires_grad_()]
    parts = ppo_parts(
        distribution,
        replace(rows, inputs=leaves[0], values=leaves[1]),
        clip=coefficients.clip,
        vf_clip=coefficients.vf_clip,
    )
    loss = parts["policy_loss"] + coefficients.vf_loss * parts["vf_loss"]
    loss = loss - coefficients.entropy * parts["entropy"]
    expected = (loss.detach(), *torch.autograd.grad(loss, leaves))
    for own, autograds in zip(found, expected, strict=True):
        torch.testing.assert_close(own.double(), autograds.nan_to_num(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 333])
@pytest.mark.parametrize("choices", [2, 5, 19])
def test_loss_and_gradient_are_those_of_autograd(choices: int, count: int) -> None:
    check(some_rows(count, choices))


def test_value_errors_need_not_be_clipped() -> None:
    check(some_rows(50, 3), replace(COEFFICIENTS, vf_clip=math.inf))


def test_forbidden_actions_have_no_gradient() -> None:
    rows = some_rows(40, 5)
    rows.actions.clamp_(max=2)
    rows.inputs[:, 3] = torch.finfo(torch.float32).min
    check(rows)
    rows.inputs[:20, 4] = -math.inf
    found = loss_and_gradient(Categorical(5), rows, COEFFICIENTS)
    assert all(bool(part.isfinite().all()) for part in found)
    assert not found[1][:, 3].any()
    assert not found[1][:20, 4].any()


def test_sure_policies_and_far_logits() -> None:
    rows = some_rows(40, 5)
    check(replace(rows, inputs=30 * rows.inputs))
    check(replace(rows, inputs=rows.inputs + 1000.0))


@pytest.mark.parametrize("column", ["inputs", "values", "log_probs", "advantages", "value_targets"])
def test_nan_is_not_lost(column: str) -> None:
    rows = some_rows(20, 4)
    getattr(rows, column)[7] = math.nan
    loss, by_inputs, by_values = loss_and_gradient(Categorical(4), rows, COEFFICIENTS)
    assert loss.isnan()
    of_policy = column not in {"values", "value_targets"}
    bad = by_inputs if of_policy else by_values
    assert bool(bad[7].isnan().all())
    assert bool(bad[:7].isfinite().all())
