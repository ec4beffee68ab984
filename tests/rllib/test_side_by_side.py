"""Two passes at the same time are the passes one after the other."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.mlp import Pass, PlainMLP
from marl_aajr.rllib.lean import side_by_side
from marl_aajr.rllib.lean.plain_gradient import PlainGradient
from marl_aajr.rllib.lean.ppo_loss import PPOCoefficients
from marl_aajr.rllib.lean.side_by_side import SideBySide


def stack(*kinds: type[nn.Module], bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(6, 8, bias=bias)]
    for kind in kinds:
        layers += [kind(), nn.Linear(8, 8, bias=bias)]
    return nn.Sequential(*layers).double()


def test_two_cores_compute_the_numbers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    actor = stack(nn.Tanh).float()
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    obs, actions = torch.randn(40, 6), torch.randint(8, (40,))
    constants = [actions, -torch.rand(40), torch.randn(40), torch.randn(40)]
    threads: list[int] = []
    forward = PlainMLP.forward

    def watched(self: PlainMLP, x: Tensor) -> Pass:
        threads.append(threading.get_ident())
        return forward(self, x)

    def gradients(cores: int) -> list[Tensor]:
        threads.clear()
        monkeypatch.setattr(side_by_side, "own_cores", lambda: cores)
        buffers: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p) for p in (*actor.parameters(), *critic.parameters())
        }
        plain = PlainGradient(
            PlainMLP(list(actor)), nn.Sequential(), PlainMLP(list(critic)), Categorical(8), buffers
        )
        plain(obs, obs, constants, PPOCoefficients(clip=0.3, vf_clip=10.0, vf_loss=1.0, entropy=0.01))
        assert len(set(threads)) == cores
        return list(buffers.values())

    monkeypatch.setattr(PlainMLP, "forward", watched)
    monkeypatch.setattr(SideBySide, "LEAST_WORK", 0)
    for one, other in zip(gradients(1), gradients(2), strict=True):
        assert torch.equal(one, other)
