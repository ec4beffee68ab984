"""Transfer: what fools one team is shown to another, in units that mean the same to both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from marl_aajr.attacks import Attack, Transfer, make_attack
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.pettingzoo import attacked
from marl_aajr.victims import ObservationFilter, Recurrent, Victim
from tests.adversaries.players import linear_victim
from tests.evaluation.players import sign_reader, signs, team
from tests.evaluation.toys import Signs
from tests.networks import generator, observations

BALL = PerturbationSet(epsilon=0.1)
UP, DOWN = (
    torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]),
    torch.tensor([[-1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]),
)


def transfer(surrogate: Victim, victim: Victim, method: Attack | None = None) -> Attack:
    return Transfer(perturbations=BALL, surrogate=surrogate, method=method).against(victim, "a")


def test_the_perturbation_is_the_surrogates() -> None:
    """The judged policy's own worst case lies the other way: the attack must not have looked at it."""
    victim, surrogate = linear_victim(DOWN), linear_victim(UP)
    obs = observations(30, 3, dtype=torch.float32)
    attack = transfer(surrogate, victim)
    attacked = attack(victim.policy("a"), obs, generator=generator())
    own = attack.run(surrogate.policy("a"), obs, generator=generator())
    assert torch.equal(attacked.delta, own)
    toward = surrogate.policy("a")(obs).argmax(-1)
    expected = 0.1 * torch.where(toward == 0, -1.0, 1.0)[:, None] * UP[0].sign()
    torch.testing.assert_close(attacked.delta, expected)


def test_from_itself_it_is_the_white_box_attack() -> None:
    victim = linear_victim(UP)
    obs = observations(30, 3, dtype=torch.float32)
    white = make_attack("pgd-strong-margin", epsilon=0.1)(victim.policy("a"), obs, generator=generator())
    again = transfer(victim, victim)(victim.policy("a"), obs, generator=generator())
    assert torch.equal(white.delta, again.delta)
    chosen = transfer(victim, victim, make_attack("fgsm", epsilon=9.0))
    one_step = make_attack("fgsm", epsilon=0.1)(victim.policy("a"), obs, generator=generator())
    assert torch.equal(chosen(victim.policy("a"), obs, generator=generator()).delta, one_step.delta)


def test_the_two_filters_are_bridged() -> None:
    """Judged sees x / 2 − 1, the surrogate x / 10: the same raw world, so the same raw perturbation."""
    judged = ObservationFilter(mean=torch.full((3,), 2.0), std=torch.full((3,), 2.0), clip=None)
    other = ObservationFilter(mean=torch.zeros(3), std=torch.full((3,), 10.0), clip=None)
    bias = torch.tensor([0.3, 0.0])
    victim = replace(linear_victim(UP), filters={"a": judged, "b": judged})
    raw = 5 * observations(50, 3, dtype=torch.float32)
    surrogate = replace(linear_victim(UP * 10, bias=bias), filters={"a": other, "b": other})
    seen = victim.inputs("a", raw)
    attacked = transfer(surrogate, victim)(victim.policy("a"), seen, generator=generator())
    toward = (raw @ UP[0] + bias[0] > 0).float()
    expected = 0.1 * (1 - 2 * toward)[:, None] * UP[0].sign()
    torch.testing.assert_close(attacked.delta, expected)


def test_forbidden_actions_are_forbidden_to_the_surrogate_too() -> None:
    """With action 2 masked, the surrogate's way to it is no way."""
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    victim = linear_victim(weight, actions=3)
    legal = torch.tensor([[True, True, False]]).repeat(4, 1)
    obs = torch.full((4, 3), -0.05)
    attacked = transfer(victim, victim)(victim.policy("a", action_mask=legal), obs, generator=generator())
    assert (attacked.outputs.argmax(-1) == 1).all()


def test_each_agent_is_lied_to_by_its_own_surrogate() -> None:
    """The judged agents share a policy, the surrogate's do not: agent_1's does not look at the sign."""
    spec = signs(longest=1)
    victim = team(spec, sign_reader())
    elsewhere = sign_reader()
    elsewhere.weight.data = elsewhere.weight.data.flip(1)
    surrogate = replace(
        victim,
        modules={"sign": sign_reader(), "elsewhere": elsewhere},
        module_of={"agent_0": "sign", "agent_1": "elsewhere", "agent_2": "sign"},
    )
    method = make_attack("fgsm", epsilon=1.1)
    attack = make_attack("transfer", epsilon=1.1, surrogate=surrogate, method=method)
    result = evaluate(victim, attacks=[(attack, 1.1)], episodes=5)
    assert result.clean_return == 3.0
    assert result.attacks[0].returns == (-1.0 + 1.0 - 1.0,) * 5
    env = attacked(Signs(), attack, victim)
    shown, _ = env.reset(seed=0)
    assert {agent: seen[0] not in (-1, 1) for agent, seen in shown.items()} == {
        "agent_0": True,
        "agent_1": False,
        "agent_2": True,
    }


class TestRefusals:
    def test_no_surrogate(self) -> None:
        with pytest.raises(ValueError, match="expected a surrogate for the attack 'transfer', got none"):
            make_attack("transfer", epsilon=0.1).against(linear_victim(UP), "a")

    def test_a_surrogate_for_others(self) -> None:
        victim = linear_victim(UP)
        strangers = replace(
            victim,
            module_of={"c": "shared"},
            observation_spaces={"c": victim.observation_spaces["a"]},
            action_spaces={"c": victim.action_spaces["a"]},
        )
        with pytest.raises(ValueError, match="a surrogate that plays 'a', got one for c"):
            transfer(strangers, victim)

    def test_a_surrogate_with_other_spaces(self) -> None:
        with pytest.raises(ValueError, match=r"surrogate for the observations Box.*\(3,\).*got one for Box"):
            transfer(linear_victim(torch.zeros(2, 5)), linear_victim(UP))
        with pytest.raises(
            ValueError, match=r"for the actions Discrete\(2\) of 'a', got one for Discrete\(3\)"
        ):
            transfer(linear_victim(torch.zeros(3, 3), actions=3), linear_victim(UP))

    def test_a_surrogate_with_a_memory(self) -> None:
        """It would have to remember a game that it does not play; the judged one may remember its own."""
        victim = linear_victim(UP)
        outputs = victim.policy("a").distribution.num_inputs
        remembers = replace(victim, modules={"shared": Recurrent(nn.GRU(3, 4), nn.Linear(4, outputs))})
        with pytest.raises(ValueError, match="a surrogate without memory, got a recurrent policy for 'a'"):
            transfer(remembers, victim)
        transfer(victim, remembers)

    def test_not_told_whom_it_faces(self) -> None:
        victim = linear_victim(UP)
        with pytest.raises(ValueError, match=r"against\(victim, agent\) before a transfer attack runs"):
            Transfer(perturbations=BALL, surrogate=victim)(
                victim.policy("a"), torch.zeros(1, 3), generator=generator()
            )
