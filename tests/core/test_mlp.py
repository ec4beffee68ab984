"""The written-out derivatives serve plain MLPs and nothing that is more than its layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from marl_aajr.core import policy as policy_module
from marl_aajr.core.ascent import ascend
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.core.objectives import Clean, Custom
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.regularizers import AAJR
from tests.networks import generator, observations, tanh_policy
from tests.regularizers.samples import evaluate, gradients, sample_of

WHOLE = AAJR(coefficient=1.0, sample_fraction=1.0, points="all", epsilon=0.3)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def pruned() -> nn.Sequential:
    layers = network()
    prune.l1_unstructured(layers[0], "weight", amount=2)
    return layers


def with_a_hook() -> nn.Sequential:
    layers = network()
    layers[2].register_forward_hook(lambda _module, _inputs, output: 10 * output)
    return layers


def tied() -> nn.Sequential:
    layers = network()
    first, tanh, second, relu, last = layers
    return nn.Sequential(first, tanh, second, nn.Tanh(), second, relu, last)


def test_nested_stacks_are_served() -> None:
    layers = network()
    nested = nn.Sequential(layers[:2], nn.Sequential(layers[2:]))
    mlp, obs = PlainMLP.of(nested), observations()
    assert mlp is not None
    outputs, pull = mlp.vjp(obs)
    torch.testing.assert_close(outputs, layers(obs))
    point = obs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layers(point), point, outputs)
    torch.testing.assert_close(pull(outputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_tangents_and_their_gradients_are_those_of_autograd(dtype: torch.dtype) -> None:
    """Single precision has a tanh of its own."""
    layers = network().to(dtype)
    mlp, obs, direction = PlainMLP.of(layers), observations(dtype=dtype), torch.ones(7, 6, dtype=dtype)
    assert mlp is not None

    def gradients_of(outputs: Tensor) -> tuple[Tensor, ...]:
        loss = (outputs * torch.linspace(-1, 1, 3, dtype=dtype)).sum()
        return torch.autograd.grad(loss, list(layers.parameters()), materialize_grads=True)

    expected, tangent, *_ = torch.func.jvp(layers, (obs,), (direction,))
    outputs, along = mlp.jvp(obs, direction)
    for found, true in ((mlp(obs), expected), (outputs, expected), (along, tangent)):
        torch.testing.assert_close(found, true)
    torch.testing.assert_close(gradients_of(mlp(obs)), gradients_of(layers(obs)))
    torch.testing.assert_close(gradients_of(along), gradients_of(tangent))


def test_no_rows_are_no_rows() -> None:
    mlp = PlainMLP.of(network())
    assert mlp is not None
    outputs, pull = mlp.vjp(torch.zeros(0, 6, dtype=torch.float64))
    assert outputs.shape == (0, 3)
    assert pull(outputs).shape == (0, 6)


@pytest.mark.parametrize("build", [pruned, with_a_hook, tied])
def test_what_is_more_than_its_layers_goes_through_autograd(build: Callable[[], nn.Sequential]) -> None:
    assert PlainMLP.of(build()) is None
    assert AAJR().fitted(ModulePolicy(build(), Categorical(3)), observations()).backend == "forward"


def test_tied_weights_have_one_gradient_in_any_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ModulePolicy(tied(), Categorical(3))
    parameters = list(policy.module.parameters())  # type: ignore[attr-defined]
    sample = sample_of(policy)
    whole = gradients(evaluate(WHOLE, sample), parameters)
    monkeypatch.setattr(policy_module, "BLOCK", 7)
    torch.testing.assert_close(gradients(evaluate(WHOLE, sample), parameters), whole)


def test_an_embedding_before_the_observations_has_its_gradient_in_any_number_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = sample_of(tanh_policy(Categorical(5)))
    embedded = sample.obs.clone().requires_grad_()
    sample = replace(sample, obs=embedded)
    (whole,) = torch.autograd.grad(evaluate(WHOLE, sample).loss, embedded)
    monkeypatch.setattr(policy_module, "BLOCK", 7)
    (divided,) = torch.autograd.grad(evaluate(WHOLE, sample).loss, embedded)
    torch.testing.assert_close(divided, whole)


def test_a_function_of_ones_own_sees_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spread(outputs: Tensor, _clean: Clean) -> Tensor:
        seen.append(len(outputs))
        return (outputs - outputs.mean(0)).square().sum(-1)

    monkeypatch.setattr(policy_module, "BLOCK", 2)
    ascend(
        tanh_policy(Categorical(5)),
        observations(),
        Custom(spread),
        PerturbationSet(epsilon=0.1),
        steps=2,
        step_size=0.05,
        generator=generator(),
    )
    assert set(seen) == {7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["forward", "push"])
def test_a_graph_that_nobody_holds_is_gone(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cycle through a node of autograd is one that no garbage collector sees."""
    mlp = PlainMLP([nn.Linear(4, 8).to(dtype), nn.Tanh(), nn.Linear(8, 2).to(dtype)])
    original, passes = getattr(PlainMLP, kind), []

    def watched(*args: Any) -> Any:
        made = original(*args)
        passes.append(weakref.ref(made))
        return made

    monkeypatch.setattr(PlainMLP, kind, watched)
    x = torch.randn(3, 4, dtype=dtype)
    held = mlp(x) if kind == "forward" else mlp.jvp(x, x)
    assert passes[0]() is not None
    del held
    assert passes[0]() is None
