"""Words that are replaced by others: legal ones, those that were not said, and the worst of all of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import make_attack
from marl_aajr.attacks.messages import MessageSubstitution
from marl_aajr.core.channels import Channel, in_order
from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.prepared_attack import prepare
from marl_aajr.rollout.environments import resolve
from marl_aajr.victims import ObservationFilter, Victim
from tests.evaluation.players import network
from tests.networks import generator

LISTEN = resolve("marl_aajr.envs.simple_speaker_listener_v4", {"max_cycles": 5})
KNOWN = {"listener_0": in_order({"velocity": 2, "landmarks": 6, "messages": 3}, messages=3)}
NAMES = ("message-random", "message-worst")


def listeners(layer: nn.Module | None = None, *, filtered: bool = False) -> Victim:
    """A speaker and a listener; the filter of the listener has another size for each number."""
    observed = ObservationFilter(torch.linspace(-0.5, 0.5, 11), torch.linspace(0.2, 2.0, 11), clip=3.0)
    return Victim.from_policies(
        {"speaker_0": network(3, 3), "listener_0": layer or network(5, 11)},
        LISTEN.make().env,
        filters={"listener_0": observed} if filtered else {},
        env_name=LISTEN.name,
        env_kwargs=dict(LISTEN.kwargs),
    )


def heard(*words: int, seed: int = 0) -> Tensor:
    """What a listener observes that hears these words; −1: silence."""
    obs = torch.randn(len(words), 11, generator=generator(seed), dtype=torch.float32)
    obs[:, 8:] = 0
    for row, word in enumerate(words):
        if word >= 0:
            obs[row, 8 + word] = 1
    return obs


def ready(name: str, victim: Victim, known: Any = None, **settings: Any) -> MessageSubstitution:
    attack = prepare(
        make_attack(name, **settings), victim, "listener_0", units="network", channels=known or KNOWN
    )
    assert isinstance(attack, MessageSubstitution)
    return attack


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_a_word_that_could_have_been_said_and_nothing_else_moves(
    name: str, filtered: bool
) -> None:
    victim = listeners(filtered=filtered)
    obs = heard(*range(-1, 3), *range(-1, 3), *[0] * 20)
    inputs = victim.inputs("listener_0", obs)
    shown = ready(name, victim)(victim.policy("listener_0"), inputs, generator=generator()).perturbed
    spoken = torch.stack(
        [
            victim.inputs("listener_0", obs.clone().index_copy(1, torch.arange(8, 11), word))
            for word in torch.eye(3).unsqueeze(1).expand(-1, len(obs), -1)
        ]
    )
    distance = (spoken - shown).abs().amax(-1)
    kept = (inputs == shown).all(-1) & (name == "message-worst")  # what was said may be the worst
    assert (kept | (distance.amin(0) < 1e-5)).all()
    if name == "message-random":
        said = obs[:, 8:].argmax(-1)
        new = distance.argmin(0)
        assert (new != said)[obs[:, 8:].any(-1)].all()
        assert {int(word) for word in new[8:]} == {1, 2}


def test_the_worst_word_is_that_of_all_combinations() -> None:
    """Two words of 2 and 3 choices, apart from each other; against a search by hand."""
    known = {"listener_0": {"a": Channel((0, 9, 2, 5, 1, 7), choices=3), "b": Channel((3, 10), choices=2)}}
    victim, obs = listeners(), torch.rand(30, 11, generator=generator(3))
    words = (0, 9, 2), (5, 1, 7), (3, 10)
    obs[:, [feature for word in words for feature in word]] = 0
    obs[:15, [9, 5, 10]] = 1  # the others have said nothing
    attack, policy = ready("message-worst", victim, known, channels=["a", "b"]), victim.policy("listener_0")
    found = attack(policy, obs, generator=generator())
    g = attack.bound(policy, obs)
    values = [found.clean_value]
    for chosen in product(*words):
        tried = obs.clone()
        tried[:, [feature for word in words for feature in word]] = 0
        tried[:, list(chosen)] = 1
        values.append(g(tried))
    torch.testing.assert_close(found.value, torch.stack(values).amax(0), rtol=1e-4, atol=1e-5)
    random = ready("message-random", victim, known, channels=["a", "b"])
    assert (random(policy, obs, generator=generator()).value <= found.value + 1e-5).all()
    assert (found.value > found.clean_value).any()


def test_too_many_combinations_are_refused() -> None:
    known = {"listener_0": {"messages": Channel(tuple(range(10)), choices=2)}}
    assert ready("message-worst", listeners(), known)
    wide = {"messages": Channel(tuple(range(22)), choices=2)}
    with pytest.raises(ValueError, match=r"at most 1,000 combinations of words .*, got 2,048"):
        make_attack("message-worst").held_to(wide, 22)


def test_words_of_a_mask_are_left_out_whole() -> None:
    own = make_attack("message-random", mask=[True] * 9 + [False, True]).held_to(KNOWN["listener_0"], 11)
    assert own is None


def test_without_an_environment_nobody_knows_the_words() -> None:
    with pytest.raises(ValueError, match="expected message-worst to know which words there are"):
        make_attack("message-worst")(listeners().policy("listener_0"), heard(0), generator=generator())


def test_lies_are_rows_of_their_own_beside_balls_on_channels() -> None:
    """A listener that goes where the word says: every lie sends it somewhere else."""
    layer = nn.Linear(11, 5)
    layer.weight.data.zero_()
    layer.weight.data[1:4, 8:] = 5 * torch.eye(3)
    layer.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])  # who hears nothing stays
    result = evaluate(
        listeners(layer),
        attacks=[
            ("noise", 0.1),
            ("pgd-margin", 0.1),
            *NAMES,
            ({"attack": "pgd-margin", "channels": ["messages"]}, 0.1),
            ({"attack": "noise", "channels": ["messages"]}, 0.1),
        ],
        episodes=6,
        selection_episodes=2,
    )
    assert [row.attack.label for row in result.attacks] == ["noise", "pgd-margin"]
    threats = {row.label: row for row in result.results[0].threats}
    assert {(row.kind, row.form, row.agents) for row in threats.values()} == {
        ("message", "random", ("listener_0",)),
        ("message", "worst", ("listener_0",)),
        ("channel", "worst", ("listener_0",)),
        ("channel", "random", ("listener_0",)),
    }
    assert list(threats) == [
        "message-random (random)",
        "message-worst (worst)",
        "pgd-margin on messages, epsilon 0.1 (worst)",
        "noise on messages, epsilon 0.1 (random)",
    ]
    lied = threats["message-random (random)"]
    assert lied.returns != result.clean.returns
    assert threats["noise on messages, epsilon 0.1 (random)"].returns == result.clean.returns
    assert not [check.text for check in result.checks if "messages" in check.text]


@pytest.mark.parametrize("name", NAMES)
def test_where_nobody_says_words_it_is_refused_or_left_out_of_a_suite(name: str) -> None:
    continuous = resolve(LISTEN.name, {**LISTEN.kwargs, "continuous_actions": True})
    victim = Victim.from_policies(
        {"speaker_0": network(6, 3), "listener_0": network(10, 11)}, continuous.make().env
    )
    with pytest.raises(ValueError, match=f"what '{name}' changes .*, got speaker_0, listener_0, who do not"):
        evaluate(victim, continuous, attacks=[name], episodes=1)
