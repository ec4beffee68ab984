"""Jacobian-vector products against the dense Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import jacrev, vmap

from marl_aajr.core import jacobian
from marl_aajr.core.distributions import ActionDistribution, Categorical
from marl_aajr.core.jacobian import BACKENDS, Backend, JVPBackend, jvp, resolve_backend, safe_sqrt
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


def test_the_safe_root_has_gradient_zero_at_zero() -> None:
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    root = safe_sqrt(x)
    assert root.tolist() == [0.0, 2.0]
    root.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.25]
    assert safe_sqrt(torch.tensor(torch.nan)).isnan()
