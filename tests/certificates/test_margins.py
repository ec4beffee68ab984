"""Margins of decisions in closed form, and with everything that a policy may have beside its layers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from marl_aajr.certificates.margins import DecisionBounds, bounded
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.victims import ClipLogStd, FreeLogStd, Recurrent, VictimPolicy
from tests.certificates.policies import decisions, network
from tests.networks import generator

FIVE = gym.spaces.Discrete(5)
TWO = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
methods = pytest.mark.parametrize("method", ["interval", "crown"])


def linear(outputs: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(4, outputs)


def inputs(rows: int = 50, features: int = 4) -> Tensor:
    return torch.randn(rows, features, generator=generator())


def closed_form(layer: nn.Linear, x: Tensor, greedy: Tensor, rivals: Tensor, reach: Tensor) -> Tensor:
    """min_j z_a − z_j − ‖(w_a − w_j) ⊙ reach‖₁ over the rivals `[B, m]` bool."""
    with torch.no_grad():
        logits = layer(x)
        gaps = logits.gather(-1, greedy) - logits
        moves = ((layer.weight[greedy] - layer.weight) * reach).abs().sum(-1)
    return (gaps - moves).where(rivals, torch.inf).amin(-1)


@methods
@pytest.mark.parametrize("masked", [False, True])
def test_a_linear_policy_has_the_margin_of_its_differences(method: Any, masked: bool) -> None:
    layer, x = linear(5), inputs()
    legal = (inputs(50, 5) > -0.5) if masked else torch.ones(50, 5, dtype=torch.bool)
    legal[:, 0] = True
    given = decisions(layer, FIVE, x, legal=legal if masked else None)
    greedy = given.outputs.argmax(-1, keepdim=True)
    threat = PerturbationSet(epsilon=0.1, mask=(True, False, True, True), scale=(1.0, 5.0, 0.5, 2.0))
    found = DecisionBounds(given).margins(threat, method)
    rivals = legal & (torch.arange(5) != greedy)
    expected = closed_form(layer, x, greedy, rivals, 0.1 * torch.tensor([1.0, 0.0, 0.5, 2.0]))
    finite = rivals.any(-1)
    assert torch.equal(found.margin.isinf(), ~finite)
    torch.testing.assert_close(found.margin.float()[finite], expected[finite], rtol=1e-3, atol=2e-5)


def test_the_rounding_of_both_logits_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    given = decisions(linear(5), FIVE, inputs())
    bounds, threat = DecisionBounds(given), PerturbationSet(epsilon=0.1)
    exact = bounds.margins(threat, "crown")
    assert (exact.rounding > 1e-7).all()
    rounding = torch.full((50, 5), 0.5, dtype=torch.float64)
    monkeypatch.setattr(bounds.network, "rounding", lambda *_: rounding)
    rounded = bounds.margins(threat, "crown")
    torch.testing.assert_close(rounded.margin, exact.margin - 1.0, atol=1e-4, rtol=0.0)
    box = decisions(linear(4), TWO, inputs())
    means = DecisionBounds(box)
    exact = means.margins(threat, "crown")
    monkeypatch.setattr(means.network, "rounding", lambda *_: rounding[:, :4])
    torch.testing.assert_close(means.margins(threat, "crown").margin, exact.margin - 0.5, atol=1e-4, rtol=0.0)


def test_several_discrete_actions_stay_only_together() -> None:
    layer, x = linear(5), inputs()
    given = decisions(layer, gym.spaces.MultiDiscrete([2, 3]), x)
    found = DecisionBounds(given).margins(PerturbationSet(epsilon=0.1), "crown").margin
    parts = []
    for low, high in ((0, 2), (2, 5)):
        part = nn.Linear(4, high - low)
        part.weight.data, part.bias.data = layer.weight.data[low:high], layer.bias.data[low:high]
        one = decisions(part, gym.spaces.Discrete(high - low), x)
        parts.append(DecisionBounds(one).margins(PerturbationSet(epsilon=0.1), "crown").margin)
    torch.testing.assert_close(found, torch.minimum(*parts), atol=1e-5, rtol=1e-5)


@methods
@pytest.mark.parametrize("head", ["both", "free", "clipped"])
def test_box_actions_have_a_bound_on_the_move_of_their_mean(method: Any, head: str) -> None:
    layer, x = linear(2 if head == "free" else 4), inputs()
    tail = {"both": nn.Identity(), "free": FreeLogStd(2, 20.0), "clipped": ClipLogStd(0.1)}[head]
    given = decisions(nn.Sequential(layer, tail), TWO, x)
    found = DecisionBounds(given).margins(PerturbationSet(epsilon=0.1), method)
    moves = 0.1 * layer.weight[:2].abs().sum(-1).detach()
    assert found.change is not None
    torch.testing.assert_close(found.change.float(), moves.max().expand(50), rtol=1e-3, atol=1e-5)
    left = (given.outputs[:, 2:].exp() - moves).amin(-1)
    torch.testing.assert_close(found.margin.float(), left, rtol=1e-3, atol=1e-5)


def test_the_largest_size_of_a_linear_policy_is_where_its_margin_ends() -> None:
    layer, x = linear(5), inputs(600)  # more rows than are bounded at once
    given = decisions(layer, FIVE, x)
    bounds = DecisionBounds(given)
    found = bounds.largest(PerturbationSet(epsilon=0.5), torch.zeros(600))
    gaps = given.outputs.amax(-1, keepdim=True) - given.outputs
    greedy = given.outputs.argmax(-1)
    length = (layer.weight[greedy].unsqueeze(1) - layer.weight).abs().sum(-1)
    exact = (gaps / length).where(gaps > 0, torch.inf).amin(-1).detach().double()
    between = (exact > 1e-3) & (exact < 0.5)
    assert between.sum() > 200
    assert (found <= exact).all()
    torch.testing.assert_close(found[between], exact[between], rtol=1e-2, atol=0.0)
    assert (exact > 0.5).any()
    assert (found[exact > 0.5] > 0.4999).all()
    known = torch.full((600,), 0.3)
    assert (bounds.largest(PerturbationSet(epsilon=0.5), known) >= known).all()


def test_no_perturbation_in_single_precision_changes_a_certified_decision() -> None:
    given = decisions(network(5, features=4), FIVE, inputs(400))
    bounds, shares = DecisionBounds(given), []
    for norm in ("linf", "l2"):
        threat = PerturbationSet(epsilon=0.05, norm=norm)
        certified = bounds.margins(threat, "crown").margin > 0
        shares.append(certified.float().mean())
        assert (bounds.margins(threat, "interval").margin > 0).float().mean() < shares[-1]
        for seed in range(100):
            delta = threat.sample(given.inputs, generator=generator(seed))
            with torch.no_grad():
                outputs = given.policy(given.inputs + delta)
            changed = outputs.argmax(-1) != given.outputs.argmax(-1)
            assert not (changed & certified).any()
    assert 0.2 < shares[0] < shares[1] < 1


def test_a_size_that_is_no_more_than_rounding_is_refused() -> None:
    bounds = DecisionBounds(decisions(linear(5), FIVE, 100 * inputs()))
    least = 16 * 2**-24 * float((100 * inputs()).abs().max())
    bounds.check_resolution(PerturbationSet(epsilon=1.01 * least))
    with pytest.raises(ValueError, match="beyond"):
        bounds.check_resolution(PerturbationSet(epsilon=0.99 * least))
    with pytest.raises(ValueError, match=r"expected an epsilon beyond .* at least 0\.000\d+ .*got 1e-06"):
        bounds.check_resolution(PerturbationSet(epsilon=1e-6))
    bounds.check_resolution(PerturbationSet(epsilon=1e-6, scale=(1e3, 1e3, 1e3, 1e3)))


class MaskReader(nn.Module):
    reads_action_mask = True

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        return obs.new_zeros(len(obs), 5)


class Doubled(nn.Sequential):
    """A stack of layers that does more than its layers."""

    def forward(self, obs: Tensor) -> Tensor:
        return 2 * super().forward(obs)


class Shifted(nn.Linear):
    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs) + 1


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Recurrent(nn.Linear(4, 8), nn.LSTM(8, 8), nn.Linear(8, 5)), r"LSTM\(8, 8\) in place 1"),
        (MaskReader(), "MaskReader, which reads the action mask"),
        (Doubled(nn.Linear(4, 5)), "Doubled"),
        (Shifted(4, 5), "Shifted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_policy_that_is_more_than_layers_is_refused(module: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        bounded(VictimPolicy(module, Categorical(5), shape=(4,)))


def test_outputs_that_are_not_those_of_the_layers_are_refused() -> None:
    given = decisions(linear(5), FIVE, inputs())
    given.outputs.add_(0.01)
    with pytest.raises(ValueError, match="outputs are others than those of its layers"):
        DecisionBounds(given)
