"""Victims that read words: what attacks move is embedded, and the words follow the rows."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from marl_aajr.attacks import make_attack
from marl_aajr.victims import Victim
from marl_aajr.victims.stepper import Stepper
from tests.token_networks import word_bag

NETWORK = word_bag().float()
OBS = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))


def victim() -> Victim:
    agents = ("a", "b")
    return Victim(
        module_of=dict.fromkeys(agents, "m"),
        modules={"m": NETWORK},
        observation_spaces=dict.fromkeys(agents, gym.spaces.Box(0, 6, (4,), np.int64)),
        action_spaces=dict.fromkeys(agents, gym.spaces.Discrete(3)),
    )


def test_it_plays_by_its_words() -> None:
    team = victim()
    stepper = Stepper(team, team.memory(6), groups=team.alike(team.agents))
    active = {"a": torch.tensor([True, False] * 3), "b": torch.tensor([True] * 6)}
    (batch,) = stepper.see({"a": OBS, "b": OBS.flip(0)}, active=active)
    read = torch.cat([OBS[::2], OBS.flip(0)])
    assert batch.policy.tokens is not None
    assert torch.equal(batch.policy.tokens, read)
    assert batch.inputs.shape == (9, 12)
    torch.testing.assert_close(batch.policy(batch.inputs), NETWORK(read))
    actions = stepper.act([batch])
    assert torch.equal(actions["b"], NETWORK(OBS.flip(0)).argmax(-1))
    assert team.act({"a": OBS[0].numpy()})["a"] == NETWORK(OBS[:1]).argmax()


def test_it_is_attacked_in_what_it_is_shown() -> None:
    team = victim()
    stepper = Stepper(team, team.memory(6), groups=team.alike(team.agents))
    (batch,) = stepper.see({"a": OBS, "b": OBS.flip(0)})
    attack = make_attack("pgd", epsilon=2.0, norm="l2")
    found = attack(batch.policy, batch.inputs, generator=torch.Generator().manual_seed(0))
    assert found.success.any()
    moved = torch.linalg.vector_norm(found.delta.unflatten(-1, (4, 3)), dim=-1)
    assert moved.amax() == pytest.approx(2.0, rel=1e-3)
    shown = stepper.decide([batch.shown(found.perturbed)])
    torch.testing.assert_close(torch.cat([shown["a"], shown["b"]]), found.outputs)
    index = torch.tensor([7, 1])
    torch.testing.assert_close(
        batch.policy.select(index)(found.perturbed[index]), found.outputs[index], rtol=1e-4, atol=1e-5
    )


def test_a_policy_without_its_words_says_so() -> None:
    team = victim()
    with pytest.raises(ValueError, match="expected the words of a policy that reads them"):
        team.policy("a")(team.inputs("a", OBS))
