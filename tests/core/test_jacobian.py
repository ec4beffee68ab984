"""Jacobian-vector products against the dense Jacobian, and output maps against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import jacrev, vmap

from marl_aajr.core import jacobian
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian, MultiCategorical
from marl_aajr.core.jacobian import (
    BACKENDS,
    OUTPUT_MAPS,
    Backend,
    JVPBackend,
    OutputMap,
    check_output_map,
    jvp,
    resolve_backend,
    safe_sqrt,
    squared_distance,
    squared_gain,
)
from marl_aajr.core.policy import ModulePolicy
from tests.networks import (
    DISTRIBUTIONS,
    generator,
    linear_policy,
    observations,
    parameters,
    tanh_policy,
)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_backend_of_any_module = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "mlp"])


@each_backend
def test_a_linear_policys_product_is_its_weight(backend: JVPBackend) -> None:
    weight, obs, u = observations(3, 6, seed=9), observations(), observations(seed=1)
    outputs, tangent = jvp(linear_policy(weight), obs, u, backend=backend)
    torch.testing.assert_close(outputs, obs @ weight.T)
    torch.testing.assert_close(tangent, u @ weight.T)


@each_backend
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_backends_equal_jacrev(backend: JVPBackend, distribution: ActionDistribution) -> None:
    policy, obs, u = tanh_policy(distribution), observations(), observations(seed=1)
    _, tangent = jvp(policy, obs, u, backend=backend)
    dense = vmap(jacrev(policy.module))(obs)
    tolerance = 1e-8 if backend == "central" else 1e-12
    torch.testing.assert_close(tangent, (dense @ u[..., None])[..., 0], atol=tolerance, rtol=0)


def test_backends_agree_in_float32() -> None:
    policy = tanh_policy(Categorical(5), dtype=torch.float32)
    obs, u = observations(dtype=torch.float32), observations(seed=1, dtype=torch.float32)
    mlp, forward, double, central = (jvp(policy, obs, u, backend=b)[1] for b in BACKENDS)
    torch.testing.assert_close(forward, mlp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(forward, double, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(forward, central, atol=5e-4, rtol=1e-3)


@each_backend
def test_the_penalty_is_differentiable_in_the_parameters(backend: JVPBackend) -> None:
    policy = tanh_policy(Categorical(5))
    _, tangent = jvp(policy, observations(), observations(seed=1), backend=backend)
    tangent.square().sum().backward()
    assert isinstance(policy.module, torch.nn.Module)
    first = next(policy.module.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@each_backend_of_any_module
def test_outputs_that_ignore_the_observation_have_gain_zero(backend: JVPBackend) -> None:
    policy = ModulePolicy(lambda x: torch.ones(len(x), 3, dtype=x.dtype), Categorical(3))
    assert (jvp(policy, observations(), observations(seed=1), backend=backend)[1] == 0).all()


@each_backend
@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 3), torch.nn.Linear(6, 3, bias=False)], ids=str)
def test_derivatives_of_the_gain_agree_with_plain_reverse_mode(
    backend: Backend, layer: torch.nn.Module, activation: type[torch.nn.Module]
) -> None:
    """∂‖J u‖²/∂θ and ∂‖J u‖²/∂u by the dense Jacobian: some backends have rules of their own."""
    network = torch.nn.Sequential(layer, activation(), torch.nn.Linear(3, 2)).double()
    u = observations(1, seed=1)[0].requires_grad_(True)
    obs = observations(1)
    variables = [u, *network.parameters()]
    _, tangent = jvp(ModulePolicy(network, Categorical(2)), obs, u[None], backend=backend)
    ours = torch.autograd.grad(tangent.square().sum(), variables, allow_unused=True)
    dense = torch.autograd.functional.jacobian(network, obs[0], create_graph=True)
    expected = torch.autograd.grad((dense @ u).square().sum(), variables, allow_unused=True)
    for mine, theirs in zip(ours[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("backend", ["mlp", "double", "central"])
def test_it_works_where_gradients_are_switched_off(backend: Backend) -> None:
    policy, obs, u = tanh_policy(Categorical(5)), observations(), observations(seed=1)
    with torch.no_grad():
        _, tangent = jvp(policy, obs, u, backend=backend)
    torch.testing.assert_close(tangent, jvp(policy, obs, u, backend="forward")[1], atol=1e-8, rtol=0)


def test_an_unknown_backend_is_refused() -> None:
    backend: Any = "reverse"
    with pytest.raises(ValueError, match="out of auto, mlp, forward, double, central; got 'reverse'"):
        jvp(tanh_policy(Categorical(5)), observations(), observations(), backend=backend)


class Recurrent(torch.nn.Module):
    """CPU `nn.LSTM` has no forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Attention(torch.nn.Module):
    """Fused attention has neither a forward derivative nor a second one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x[:, None]
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]


UNSUPPORTED = [
    (torch.nn.Tanh, "forward", []),
    (Recurrent, "double", ["forward"]),
    (Attention, "central", ["forward", "double"]),
]


@pytest.mark.parametrize(("module", "chosen", "impossible"), UNSUPPORTED)
def test_auto_takes_the_first_backend_that_the_module_supports(
    module: type[torch.nn.Module], chosen: str, impossible: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    jacobian._report_fallback.cache_clear()
    policy = ModulePolicy(module(), Categorical(4))
    obs, u = (torch.randn(3, 5, 6, generator=generator(seed)) for seed in (0, 1))
    for _ in range(2):
        assert resolve_backend(policy, obs, "auto") == chosen
    assert len(caplog.messages) == (1 if impossible else 0)
    for line in caplog.messages:
        assert f"using backend='{chosen}'" in line
        assert all(f"{name}: " in line for name in impossible)
    tangent = jvp(policy, obs, u)[1]
    torch.testing.assert_close(tangent, jvp(policy, obs, u, backend="central")[1], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(("module", "chosen", "impossible"), UNSUPPORTED)
def test_a_backend_that_the_module_does_not_support_is_refused(
    module: type[torch.nn.Module], chosen: str, impossible: list[Any]
) -> None:
    policy, obs = ModulePolicy(module(), Categorical(4)), torch.randn(3, 5, 6, generator=generator())
    for backend in impossible:
        with pytest.raises(ValueError, match=f"a policy that backend='{backend}' can differentiate, got one"):
            resolve_backend(policy, obs, backend)


def test_a_learner_thread_can_leave_out_forward_mode() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    without: list[Backend] = ["double", "central"]
    assert resolve_backend(policy, obs, "auto", allowed=without) == "double"
    with pytest.raises(ValueError, match="expected backend out of double, central; got 'forward'"):
        resolve_backend(policy, obs, "forward", allowed=without)


def test_trying_a_backend_leaves_no_gradient_behind() -> None:
    policy, obs = tanh_policy(Categorical(5)), observations()
    resolve_backend(policy, obs, "auto")
    assert not obs.requires_grad
    assert all(parameter.grad is None for parameter in parameters(policy))


DEFINED = [
    (output, distribution)
    for distribution in DISTRIBUTIONS
    for output in OUTPUT_MAPS
    if output != ("probs" if isinstance(distribution, DiagGaussian) else "mean")
]


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_output_maps_equal_the_norm_of_their_own_jacobian(
    output: OutputMap, distribution: ActionDistribution
) -> None:
    """‖J_φ u‖² with J_φ of the composed map by jacrev; Fisher by its matrix, the Hessian of KL."""
    check_output_map(output, distribution)
    policy, obs, u = tanh_policy(distribution), observations(), observations(seed=1)
    outputs, tangent = jvp(policy, obs, u)
    ours = squared_gain(output, distribution, outputs, tangent)

    def phi(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = policy.module(x)
        if output == "probs" and isinstance(distribution, MultiCategorical):
            return torch.cat([part.softmax(-1) for part in distribution.split(y)], -1)
        if output == "probs":
            return y.softmax(-1)
        return y[: distribution.k] if output == "mean" and isinstance(distribution, DiagGaussian) else y

    for i in range(len(obs)):
        if output == "fisher":
            y0 = policy(obs[i]).detach()
            hessian = torch.func.hessian(lambda y, y0=y0: distribution.kl(y0, y))(y0)
            expected = tangent[i] @ hessian @ tangent[i]
        else:
            expected = (jacrev(phi)(obs[i]) @ u[i]).square().sum()
        torch.testing.assert_close(ours[i], expected)


def test_a_detached_metric_sends_no_gradient_through_the_probabilities() -> None:
    """With the metric detached, the derivative with respect to a bias, which moves p but not J u, is zero."""
    obs, u = observations(4, 3), observations(4, 3, seed=1)
    for metric, silent in (("detached", True), ("full", False)):
        policy = linear_policy(observations(5, 3, seed=2), bias=observations(1, 5, seed=3)[0])
        outputs, tangent = jvp(policy, obs, u)
        chosen: Any = metric
        squared_gain("fisher", Categorical(5), outputs, tangent, metric=chosen).sum().backward()
        assert isinstance(policy.module, torch.nn.Linear)
        gradient = policy.module.bias.grad
        assert (gradient is None or bool((gradient == 0).all())) == silent


@pytest.mark.parametrize(("output", "distribution"), DEFINED, ids=str)
def test_the_chord_becomes_the_tangent(output: OutputMap, distribution: ActionDistribution) -> None:
    """‖φ(y + h t) − φ(y)‖² / h² → ‖J_φ t‖²."""
    y, t = (observations(5, distribution.num_inputs, seed=seed) for seed in (0, 1))
    chord = squared_distance(output, distribution, y, y + 1e-6 * t) / 1e-12
    torch.testing.assert_close(chord, squared_gain(output, distribution, y, t), atol=0, rtol=1e-4)


def test_the_distance_of_probabilities_is_their_own() -> None:
    y, z = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[100.0, 0.0, 1.0, 1.0]])
    assert squared_distance("probs", MultiCategorical((2, 2)), y, z).item() == pytest.approx(0.5)
    assert squared_distance("logits", MultiCategorical((2, 2)), y, z).item() == 1e4


def test_the_safe_root_has_gradient_zero_at_zero() -> None:
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    root = safe_sqrt(x)
    assert root.tolist() == [0.0, 2.0]
    root.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.25]
    assert safe_sqrt(torch.tensor(torch.nan)).isnan()


def test_masked_logits_have_no_gain() -> None:
    outputs = torch.tensor([[1.0, 2.0, torch.finfo(torch.float32).min]])
    tangent = torch.tensor([[1.0, 2.0, 100.0]])
    assert squared_gain("logits", Categorical(3), outputs, tangent).item() == 5.0
    other = torch.tensor([[2.0, 4.0, 0.0]])
    assert squared_distance("logits", Categorical(3), outputs, other).item() == 5.0


@pytest.mark.parametrize(
    ("output", "distribution", "message"),
    [
        ("probs", DiagGaussian(2), "for a Gaussian policy, got 'probs'"),
        ("mean", Categorical(2), "for a discrete policy, got 'mean'"),
        ("values", Categorical(2), "out of logits, mean, probs, fisher; got 'values'"),
    ],
)
def test_undefined_output_maps_are_refused(
    output: str, distribution: ActionDistribution, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_output_map(output, distribution)
