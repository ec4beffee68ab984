"""The path that rollouts keep for AAJR: behind a filter it is where the network was, in its units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.bound_objective import value_and_gradient
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Clean, Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.regularizers import AAJR, Sample
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.kept_path import kept_path
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.networks import generator, observations, tanh_policy
from tests.regularizers.samples import evaluate

MEAN = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0, 0.0])
SCALE = torch.tensor([1.0, 0.5, 2.0, 0.02, 1e-6, 1e-6])
"""Of a filter; the last two features have stood still, and of the one before them some are clipped."""


def filtered(obs: Tensor) -> Tensor:
    return ((obs - MEAN) / SCALE).clamp(-10, 10)


def network() -> ModulePolicy:
    return tanh_policy(Categorical(4), dtype=torch.float32)


def acting() -> ActingRows:
    """Rows of a policy behind the filter, whose last two features are what they always were."""
    layers, obs = network(), observations(40, dtype=torch.float32) * SCALE + MEAN
    policy = ModulePolicy(lambda x: layers(filtered(x)), Categorical(4))
    return ActingRows(policy, obs, filtered, SCALE)


def kept(attack: RolloutAttack, rows: ActingRows, epsilon: float) -> tuple[list[Tensor], Tensor]:
    """The points of the attack on the environment, and what is kept of them."""
    found = attack.perturb(rows.policy, rows.obs, epsilon=epsilon, generator=generator(), keep_path=True)
    return list(found.deltas), kept_path(attack, found, rows, rows.seen(rows.obs), generator=generator())


@pytest.mark.parametrize("limits", [{}, {"mask": (True, False, True, True, True, False)}], ids=str)
@pytest.mark.parametrize("epsilon", [0.1, 10.0])
def test_behind_a_filter_the_penalty_is_that_of_the_points_that_the_network_read(
    epsilon: float, limits: Any
) -> None:
    rows, policy = acting(), network()
    attack = RolloutAttack(path="all", steps=4, epsilon=epsilon, **limits)
    deltas, path = kept(attack, rows, epsilon)
    clean = rows.seen(rows.obs)
    g = Margin().bind(policy, Clean(policy(clean).detach()))
    read = [rows.seen(rows.obs + delta) for delta in deltas]
    free = torch.tensor(limits.get("mask", (True,) * 6))
    slopes = [value_and_gradient(g, clean, at - clean)[1] * free * (at.abs() < 10) for at in read]
    points = torch.stack(read) - clean
    directions = nn.functional.normalize(torch.stack(slopes), dim=-1)
    assert (path[:, 0].movedim(1, 0) - points).abs().max() < 0.01  # half precision at 20
    assert torch.allclose(path[:, 1].movedim(1, 0).float(), directions, atol=1e-3)
    aajr = AAJR(objective="margin", points="all", steps=4, sample_fraction=1.0, **limits)
    along, sample = replace(aajr, directions="rollout"), Sample(policy, clean, policy(clean), path=path)
    found = evaluate(along, sample).metrics
    squared = aajr.squared_gains(policy, clean + points, directions)
    assert found["penalty"].item() == pytest.approx(squared.mean().item(), rel=0.01)
    assert found["gain_mean"].item() == pytest.approx(squared.sqrt().mean().item(), rel=0.01)
    for step in range(4):  # a policy that stands still has no stale directions
        only = replace(sample, path=path[:, :, step : step + 1])
        assert evaluate(along, only).metrics["direction_cosine"] > 0.999


def test_without_a_filter_the_points_are_those_of_the_attack() -> None:
    rows = replace(acting(), policy=network(), seen=lambda obs: obs, scale=None)
    deltas, path = kept(RolloutAttack(path="all", steps=4), rows, 0.1)
    assert torch.equal(path[:, 0].movedim(1, 0), torch.stack(deltas).half())


def test_points_beyond_half_precision_are_refused() -> None:
    rows = replace(acting(), policy=network(), seen=lambda obs: obs, scale=None)
    attack = RolloutAttack(path="one", epsilon=1e4, scale=(1.0, 1.0, 7.0, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="at most 65504 to keep the path of in half precision, got 70000"):
        kept(attack, rows, 1e4)
    _, path = kept(attack, acting(), 1e4)
    assert path.isfinite().all()
