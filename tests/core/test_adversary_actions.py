"""What learned adversaries' actions mean: their spaces, and how far PA-AD can move a policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from marl_aajr.core import policy as policy_module
from marl_aajr.core.adversary_actions import PAADActions, adversary_actions, side_by_side
from marl_aajr.core.distributions import ActionDistribution, Categorical, DiagGaussian
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.training.atla import ATLA
from tests.networks import observations, tanh_policy


def test_a_linear_policy_is_moved_to_the_corner() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    policy = ModulePolicy(layer, Categorical(3))
    obs = torch.tensor([[1.0, 0.1, 5.0], [0.8, 0.0, 5.0]])
    ball = PerturbationSet(epsilon=0.5)
    delta = PAADActions(steps=5, step_size=0.5).perturb(policy, obs, torch.tensor([[2], [1]]), ball)
    assert torch.equal(delta, torch.tensor([[-0.5, 0.0, 0.0], [-0.5, 0.5, 0.0]]))
    assert policy(obs + delta).argmax(-1).tolist() == [0, 1]


def test_a_gaussian_mean_goes_the_directions_way() -> None:
    layer = nn.Linear(2, 4, bias=False)
    layer.weight.data = torch.tensor([[2.0, 0.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    policy = ModulePolicy(layer, DiagGaussian(2))
    obs, ball = torch.zeros(2, 2), PerturbationSet(epsilon=0.1)
    wish = torch.tensor([[1.0, 1.0], [-0.2, 0.0]])
    delta = PAADActions(steps=3, step_size=0.5).perturb(policy, obs, wish, ball)
    torch.testing.assert_close(delta, torch.tensor([[0.1, -0.1], [-0.1, 0.0]]))


@pytest.mark.parametrize("distribution", [Categorical(5), DiagGaussian(3)], ids=str)
def test_every_row_has_its_own_in_blocks_as_well(
    distribution: ActionDistribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, obs, ball = tanh_policy(distribution), observations(30), PerturbationSet(epsilon=0.5)
    discrete = isinstance(distribution, Categorical)
    wish = torch.arange(30).unsqueeze(-1) % 5 if discrete else observations(30, 3, seed=1)
    director = PAADActions(steps=3, step_size=0.5)
    whole = director.perturb(policy, obs, wish, ball)
    monkeypatch.setattr(policy_module, "BLOCK", 7)
    torch.testing.assert_close(director.perturb(policy, obs, wish, ball), whole)


def test_what_pgd_did_is_said_as_a_wish() -> None:
    director = PAADActions()
    discrete = ModulePolicy(nn.Linear(2, 3), Categorical(3))
    moved = torch.tensor([[0.0, 3.0, 1.0]])
    assert director.label(discrete, torch.zeros(1, 3), moved).tolist() == [[1]]
    gaussian = ModulePolicy(nn.Linear(2, 4), DiagGaussian(2))
    clean, moved = torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.5, 0.0, 0.0]])
    assert director.label(gaussian, clean, moved).tolist() == [[-1.0, 0.5]]


BOX, DISCRETE, MULTI = spaces.Box(-3, 3, (2, 2)), spaces.Discrete(5), spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    ("kind", "actions", "space"),
    [
        ("sa-rl", DISCRETE, spaces.Box(-1, 1, (4,))),
        ("pa-ad", DISCRETE, DISCRETE),
        ("pa-ad", MULTI, MULTI),
        ("pa-ad", spaces.Box(0, 9, (3,)), spaces.Box(-1, 1, (3,))),
    ],
    ids=str,
)
def test_spaces(kind: str, actions: Any, space: Any) -> None:
    assert adversary_actions(kind).space(BOX, actions) == space


@pytest.mark.parametrize(
    ("parts", "space"),
    [
        ([DISCRETE], DISCRETE),
        ([DISCRETE, MULTI], spaces.MultiDiscrete([5, 2, 3])),
        ([spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))], spaces.Box(-1, 1, (5,))),
    ],
    ids=str,
)
def test_spaces_side_by_side(parts: list[Any], space: Any) -> None:
    assert side_by_side(parts) == space


def test_attacks_and_atla_have_one_default() -> None:
    assert ATLA(adversary="pa-ad").actions == adversary_actions("pa-ad") == PAADActions()
