"""Calls of attacks that are answered as one have the numbers of calls that are answered alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from marl_aajr.adversaries.action_value import ActionValue
from marl_aajr.attacks import ATTACKS, PGD, Attack, make_attack
from marl_aajr.attacks.together import AttackCall, answered, play_together, same_but_for_size
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.threat import PerturbationSet, PerturbationSets
from marl_aajr.victims import VictimPolicy

FEATURES, ACTIONS = 6, 4
MIXED = [name for name in ATTACKS if ATTACKS[name]._mixes_sizes and name != "transfer"]
LIMITS: dict[str, dict[str, Any]] = {
    "linf": {},
    "l2": {"norm": "l2"},
    "bounds": {"mask": (True,) * 5 + (False,), "scale": (1.0, 2.0) * 3, "low": -0.5},
}


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, outputs))
    return layers.requires_grad_(False)


NETWORK, CRITIC = network(ACTIONS), network(1)
Q = ActionValue(FEATURES, ACTIONS, generator=torch.Generator().manual_seed(1)).requires_grad_(False)


def attack_of(name: str, epsilon: float, **limits: Any) -> Attack:
    attack = make_attack(name, epsilon=epsilon, **limits)
    return replace(attack, _q=Q) if name == "robust-sarsa" else attack  # type: ignore[call-arg]


def call(attack: Attack, rows: int, *, drawn: int = 0, masked: bool = False) -> AttackCall:
    """A call on observations of its own, by a generator that some numbers were drawn from before."""
    generator = torch.Generator().manual_seed(7)
    torch.rand(drawn, generator=generator)
    obs = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(rows))
    legal = torch.ones(rows, ACTIONS, dtype=torch.bool)
    legal[::2, 1] = False
    columns = {"action_mask": legal} if masked else {}
    policy = VictimPolicy(NETWORK, Categorical(ACTIONS), shape=(FEATURES,), critic=CRITIC, **columns)
    return AttackCall(attack, policy, obs, generator)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", MIXED)
def test_a_call_has_the_same_numbers_whatever_is_answered_beside_it(name: str, limits: str) -> None:
    """Of other sizes, rows and random numbers; some share theirs, and go on from where they would have.

    PyTorch rounds a row's softmax by its place in the batch, and steps along the gradient itself keep that.
    """
    asked = [(0.1, 40, 0), (0.3, 40, 0), (0.3, 17, 0), (0.1, 40, 5)]
    made = [
        [call(attack_of(name, e, **LIMITS[limits]), rows, drawn=d, masked=True) for e, rows, d in asked]
        for _ in range(2)
    ]
    alone = [answered([[one]])[0][0] for one in made[0]]
    assert all(made[1][0].mixes(other) for other in made[1])
    with patch.object(Attack, "__call__", autospec=True, side_effect=Attack.__call__) as called:
        together = answered([[one] for one in made[1]])
    assert called.call_count == 1
    for one, (beside,) in zip(alone, together, strict=True):
        slack = 1e-2 if limits == "l2" else 1e-6
        torch.testing.assert_close(beside.delta, one.delta, atol=slack, rtol=0)
        torch.testing.assert_close(beside.outputs, one.outputs, atol=slack, rtol=0)
        torch.testing.assert_close(beside.value, one.value, atol=slack, rtol=0)
    for before, after in zip(*made, strict=True):
        assert torch.equal(before.generator.get_state(), after.generator.get_state())


def test_others_are_answered_alone() -> None:
    class Mine(PGD):
        """Says nothing of sizes."""

    one = PerturbationSet(epsilon=0.1)
    assert not Mine(perturbations=one).mixes_sizes
    assert not PGD(perturbations=one, objective=lambda y, _: y[:, 0]).mixes_sizes  # type: ignore[arg-type]
    pgd = make_attack("pgd", epsilon=0.1)
    assert same_but_for_size(pgd, pgd.at(0.5))
    assert not same_but_for_size(pgd, make_attack("pgd", epsilon=0.1, steps=3))
    assert not same_but_for_size(pgd, make_attack("pgd", epsilon=0.1, norm="l2"))
    other = VictimPolicy(network(ACTIONS), Categorical(ACTIONS), shape=(FEATURES,), critic=CRITIC)
    assert call(pgd, 3).mixes(call(pgd, 4))
    assert not call(pgd, 3).mixes(call(pgd, 3, masked=True))
    assert not call(pgd, 3).mixes(replace(call(pgd, 3), policy=other))


def test_games_of_several_lengths_get_their_answers_in_order() -> None:
    """Each is answered what it asked, whether others are over, ask nothing, or ask for something else."""

    def game(attack: Attack, steps: int, calls: int) -> Any:
        found = []
        for _ in range(steps):
            answers = yield [call(attack, 2 + i) for i in range(calls)]
            assert [len(each.delta) for each in answers] == [2 + i for i in range(calls)]
            found.append(max(float(each.delta.abs().max()) for each in answers))
        return found

    pgd, noise = make_attack("pgd", epsilon=0.1), make_attack("noise", epsilon=0.4)
    games = [(pgd, 2, 1), (pgd.at(0.3), 3, 2), (noise, 1, 2), (pgd, 0, 1)]
    results = play_together([game(*each) for each in games])
    assert results == [pytest.approx(play_together([game(*each)])[0], abs=1e-6) for each in games]
    assert [len(found) for found in results] == [2, 3, 1, 0]
    assert max(results[0]) <= 0.1 + 1e-6 < max(results[1]) <= 0.3 + 1e-6 < results[2][0]


def test_whether_a_row_is_in_its_own_set() -> None:
    sets = PerturbationSets.of(PerturbationSet(epsilon=1.0), torch.tensor([[0.1], [0.5]]).double())
    delta = torch.full((2, 3), 0.3)
    obs = torch.zeros_like(delta)
    assert sets.contains(delta, obs).tolist() == [False, True]
    assert sets.select(torch.tensor([1])).contains(delta[:1], obs[:1]).item()
    assert sets.repeat(2).contains(delta.repeat(2, 1), obs.repeat(2, 1)).tolist() == [False, True] * 2
