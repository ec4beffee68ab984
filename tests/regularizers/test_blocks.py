"""The penalty in blocks is the penalty: same value, same gradient, same squares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from marl_aajr.core import policy as policy_module
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.jacobian import BACKENDS, Backend
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR
from tests.networks import parameters, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

FORMS = [
    AAJR(coefficient=0.5, sample_fraction=1.0, points="all"),
    AAJR(coefficient=0.5, sample_fraction=1.0, points="all", form="hinge", gain_bound=0.1),
    AAJR(coefficient=0.5, sample_fraction=1.0, points="all", output="fisher", metric="full"),
    AAJR(coefficient=0.5, sample_fraction=1.0, points="all", output="margin"),
]


FIRST, *OTHERS = BACKENDS
CASES = [(form, FIRST, masked) for form in FORMS for masked in (False, True)]
CASES += [(FORMS[0], backend, False) for backend in OTHERS]


@pytest.mark.parametrize(("regularizer", "backend", "masked"), CASES)
def test_blocks_of_any_size_give_the_same(
    regularizer: AAJR, backend: Backend, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tanh_policy(Categorical(5))
    mask = torch.arange(7) % 3 != 1 if masked else None
    sample = sample_of(policy, mask=mask)
    regularizer = replace(regularizer, backend=backend)
    whole = evaluate(regularizer, sample)
    expected = gradients(whole, parameters(policy))
    for rows in (1, 7, 100):
        monkeypatch.setattr(policy_module, "BLOCK", rows)
        divided = evaluate(regularizer, sample)
        torch.testing.assert_close(divided.loss, whole.loss)
        torch.testing.assert_close(gradients(divided, parameters(policy)), expected)
        torch.testing.assert_close(divided.metrics["gain_max"], whole.metrics["gain_max"])


def test_a_policy_whose_parameters_are_not_known_keeps_its_graph() -> None:
    """A function of tensors trains as well: its graph is kept for the learner's own backward pass."""
    policy = tanh_policy(Categorical(5))
    known = evaluate(FORMS[0], sample_of(policy))
    unknown = evaluate(FORMS[0], sample_of(ModulePolicy(policy, policy.distribution)))
    torch.testing.assert_close(gradients(unknown, parameters(policy)), gradients(known, parameters(policy)))


def test_frozen_parameters_get_no_gradient() -> None:
    policy = tanh_policy(Categorical(5))
    first, *others = parameters(policy)
    first.requires_grad_(False)
    loss = evaluate(FORMS[0], sample_of(policy)).loss
    loss.backward()
    assert first.grad is None
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in others)
