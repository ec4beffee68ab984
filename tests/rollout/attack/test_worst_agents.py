"""The worst k agents of each step and copy: whose objective rises most, and who is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import KL, Margin
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.rollout.attack.members import attacked_members
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import Attempt, largest_in_each, objective_gain, settled


def test_the_largest_of_each_group_and_of_equal_ones_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (60,), generator=generator).float()
    group = torch.randint(7, (60,), generator=generator)
    for k in (1, 2, 5):
        expected = torch.zeros(60, dtype=torch.bool)
        for g in range(7):
            own = [i for i in range(60) if group[i] == g]
            expected[sorted(own, key=lambda i: (-float(values[i]), i))[:k]] = True
        assert torch.equal(largest_in_each(values, group, k), expected)


def test_the_gain_of_a_linear_policy_is_epsilon_times_the_l1_norm_of_the_difference() -> None:
    """g(δ) − g(0) = ε ‖w_1 − w_0‖₁ on the margin; the kl is that of its outputs before and after."""
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[2.0, -1.0, 0.0], [0.5, 3.0, 0.25]])
    policy, obs = ModulePolicy(linear, Categorical(2)), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    found = RolloutAttack().perturb(policy, obs, epsilon=0.1, generator=generator)
    gain = objective_gain(Margin(), policy, obs, found)
    assert torch.allclose(gain, torch.full((2,), 0.1 * (1.5 + 4.0 + 0.25)))
    found = RolloutAttack(objective="kl").perturb(policy, obs, epsilon=0.1, generator=generator)
    expected = Categorical(2).kl(linear(obs), linear(obs + found.delta))
    assert torch.allclose(objective_gain(KL(), policy, obs, found), expected, atol=1e-6)


def attempt(gain: list[float], moment: list[int], hit: list[bool] | None = None) -> Attempt[list[bool]]:
    def show(rows: Tensor | None) -> list[bool]:
        return [True] * len(gain) if rows is None else [bool(row) for row in rows]

    may = None if hit is None else torch.tensor(hit)
    return Attempt(show, may, (torch.tensor(gain), torch.tensor(moment)))


def test_agents_of_all_modules_are_ranked_together_and_who_does_not_act_is_not_chosen() -> None:
    one = attempt([3.0, 1.0, 9.0, 0.5], [0, 1, 0, 1], [True, True, False, True])
    other = attempt([2.0, 0.7], [0, 1])
    nobody: Attempt[list[bool]] = Attempt(lambda _: [])
    found = settled({"one": one, "other": other, "nobody": nobody}, 1)
    assert found == {"one": [True, True, False, False], "other": [False, False], "nobody": []}
    one = attempt([3.0, 1.0, 9.0, 0.5], [0, 1, 0, 1], [True, True, False, True])
    assert settled({"one": one, "other": attempt([2.0, 0.7], [0, 1])}, 2) == {
        "one": [True, True, False, False],
        "other": [True, True],
    }


def test_fewer_than_k_that_act_are_all_attacked() -> None:
    assert settled({"m": attempt([1.0, 2.0, 3.0], [0, 0, 0], [False, True, False])}, 2) == {
        "m": [False, True, False]
    }
    assert settled({"m": attempt([1.0, 2.0], [0, 0])}, None) == {"m": [True, True]}


GROUPS = {"m": ("a", "b"), "n": ("c",)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"worst_agents": 3}, r"worst_agents smaller than 3, the number of agents .* \(a, b, c\), got 3"),
        ({"worst_agents": 2, "agents": ["a", "c"]}, r"worst_agents smaller than 2.*\(a, c\), got 2"),
        (
            {"worst_agents": 1, "objective": "value"},
            "whose gains are in nats, for worst_agents of modules m, n",
        ),
        ({"worst_agents": 1, "objective": lambda y, _: y[:, 0]}, "the objective 'margin' or 'kl'"),
    ],
)
def test_a_choice_of_everybody_and_gains_that_do_not_compare_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attacked_members(RolloutAttack(**settings), GROUPS)


def test_within_one_module_values_compare() -> None:
    attack = RolloutAttack(worst_agents=1, objective="value", agents=("a", "b"))
    assert attacked_members(attack, GROUPS) == {"m": (0, 1)}


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_a_number_of_agents(k: Any) -> None:
    with pytest.raises(ValueError, match="expected an integer worst_agents ≥ 1"):
        RolloutAttack(worst_agents=k)
