"""Names of features: how they are read, and what they become of a perturbation set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces

from marl_aajr.core.channels import Channel, channels_in, check_channels, held, in_order, read_channels
from marl_aajr.core.threat import PerturbationSet

KNOWN = in_order({"position": 2, "messages": 3, "nothing": 0}, messages=3)
WIDTHS = {"red_0": 5, "red_1": 5, "blue": 3}


def test_features_lie_one_behind_the_other() -> None:
    assert {"position": Channel((0, 1)), "messages": Channel((2, 3, 4), choices=3)} == KNOWN
    assert Channel((4, 1, 7, 2), choices=2).groups == ((4, 1), (7, 2))
    assert KNOWN["position"].groups == ()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"a": 3}, (3,)),
        ({"a": "3"}, (3,)),
        ({"a": "1:3"}, (1, 2)),
        ({"a": ["0:5:2", 1]}, (0, 2, 4, 1)),
        ({"a": "-2:"}, (3, 4)),
        ({"a": {"features": [3, 4], "choices": 2}}, (3, 4)),
        ({"*": {"a": [0]}}, (0,)),
        ({"red_1": {"a": [2]}, "red_*": {"a": [1]}}, (1,)),
    ],
)
def test_channels_as_people_write_them(said: Any, expected: tuple[int, ...]) -> None:
    found = read_channels(said, {"red_0": 5, "red_1": 5}, env="game")
    assert found["red_0"]["a"].features == expected
    assert found["red_0"]["a"].choices == (2 if "choices" in str(said) else 0)
    if "red_1" in said:
        assert found["red_1"]["a"].features == (2,)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "expected env.channels as"),
        ([3], "expected env.channels as"),
        ({"green": {"a": [0]}}, "expected env.channels of red_0, red_1, blue, got those of 'green'"),
        ({"a": [3]}, "agent 'blue' of game: expected features out of its 3, 0 to 2, got 3"),
        ({"a": "2:9"}, "agent 'red_0' of game: expected features out of its 5"),
        ({"a": "3:3"}, "expected features out of"),
        ({"a": "x:2"}, "as numbers and slices"),
        ({"a": None}, "as numbers and slices"),
        ({"a": [0, 0]}, "each once"),
        ({"a": []}, "expected features of a channel"),
        ({"a": {"features": [0, 1, 2], "choices": 2}}, "in groups of choices=2, got 3"),
        ({"a": {"features": [0], "choices": -1}}, "choices ≥ 0"),
        ({"a": {"features": [0], "words": 2}}, "expected features and choices of a channel"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(said: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        read_channels(said, WIDTHS, env="game")


def test_agents_that_nobody_names_have_no_channels() -> None:
    assert read_channels({"red_*": {"a": [4]}}, WIDTHS, env="game")["blue"] == {}


def test_parts_of_a_dict_are_channels_and_discrete_ones_are_choices() -> None:
    space = spaces.Dict(
        action_mask=spaces.MultiBinary(4),
        camera=spaces.Dict(depth=spaces.Box(0, 1, (2, 2))),
        word=spaces.Discrete(3),
        at=spaces.Box(-1, 1, (2,)),
    )
    assert channels_in(space) == in_order({"at": 2, "camera/depth": 4, "word": 3}, word=3)
    box, legal = spaces.Box(-1, 1, (2,)), spaces.MultiBinary(4)
    assert channels_in(box) == channels_in(spaces.Dict(observation=box, action_mask=legal)) == {}


def test_names_become_the_mask_and_what_was_masked_stays_so() -> None:
    asked = PerturbationSet(epsilon=0.1, channels=["messages", "elsewhere"])  # type: ignore[arg-type]
    assert held(asked, KNOWN, 5) == PerturbationSet(epsilon=0.1, mask=(False, False, True, True, True))
    both = PerturbationSet(epsilon=0.1, channels=("messages",), mask=(True, True, True, False, True))
    assert held(both, KNOWN, 5) == PerturbationSet(epsilon=0.1, mask=(False, False, True, False, True))
    assert held(both, in_order({"position": 5}), 5) is None
    everything = PerturbationSet(epsilon=0.1)
    assert held(everything, KNOWN, 5) is everything
    with pytest.raises(ValueError, match="expected 6 features in mask, got 5"):
        held(both, KNOWN, 6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_set_refuses_to_be_used_by_name(norm: Any) -> None:
    by_name, obs = PerturbationSet(epsilon=0.1, norm=norm, channels=("messages",)), torch.zeros(1, 5)
    generator = torch.Generator().manual_seed(0)
    for use in (
        lambda: by_name.project(obs, obs),
        lambda: by_name.contains(obs, obs),
        lambda: by_name.preconditioner(obs),
        lambda: by_name.sample(obs, generator=generator),
    ):
        with pytest.raises(ValueError, match="which features messages are"):
            use()


@pytest.mark.parametrize("channels", [[], "messages", [3], ()])
def test_channels_are_a_list_of_names(channels: Any) -> None:
    with pytest.raises(ValueError, match="expected channels as a list of names"):
        PerturbationSet(epsilon=0.1, channels=channels)


def test_a_channel_that_is_not_there_is_refused_with_those_that_are() -> None:
    known = {"speaker": in_order({"goal": 3}), "listener": KNOWN}
    check_channels(["messages", "goal"], known, ["speaker", "listener"], env="game")
    check_channels(None, known, ["speaker"], env="game")
    with pytest.raises(ValueError, match="a channel of speaker in game out of goal; got 'messages'"):
        check_channels(["messages"], known, ["speaker"], env="game")
    with pytest.raises(ValueError, match=r"says what its observations consist of .* say it: env.channels"):
        check_channels(["messages"], {}, ["speaker"], env="game")
