"""The written-out gradient of a plain MLP by its weights is the one that autograd finds."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.mlp import PlainMLP
from marl_aajr.rllib.lean import mlp_gradient
from marl_aajr.rllib.lean.mlp_gradient import MLPGradient, SideBySide
from marl_aajr.rllib.lean.ppo_loss import PlainGradient, PPOCoefficients


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


def test_two_cores_compute_the_numbers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    actor = stack(nn.Tanh).float()
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    obs, actions = torch.randn(40, 6), torch.randint(8, (40,))
    constants = [actions, -torch.rand(40), torch.randn(40), torch.randn(40)]
    threads: list[int] = []
    forward = MLPGradient.forward

    def watched(self: MLPGradient, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        threads.append(threading.get_ident())
        return forward(self, x)

    def gradients(cores: int) -> list[Tensor]:
        threads.clear()
        monkeypatch.setattr(mlp_gradient, "own_cores", lambda: cores)
        buffers: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p) for p in (*actor.parameters(), *critic.parameters())
        }
        plain = PlainGradient(
            PlainMLP(list(actor)), nn.Sequential(), PlainMLP(list(critic)), Categorical(8), buffers
        )
        plain(obs, obs, constants, PPOCoefficients(clip=0.3, vf_clip=10.0, vf_loss=1.0, entropy=0.01))
        assert len(set(threads)) == cores
        return list(buffers.values())

    monkeypatch.setattr(MLPGradient, "forward", watched)
    monkeypatch.setattr(SideBySide, "LEAST_WORK", 0)
    for one, other in zip(gradients(1), gradients(2), strict=True):
        assert torch.equal(one, other)
