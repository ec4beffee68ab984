"""Random numbers by place: the published generator, uniform, and the same wherever the copy runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from marl_aajr.core.seeds import Streams, mix_

CPU = torch.device("cpu")
WORD = (1 << 64) - 1


def splitmix64(state: int) -> tuple[int, int]:
    """The reference, in Python's integers: next state and number."""
    state = (state + 0x9E3779B97F4A7C15) & WORD
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return state, z ^ (z >> 31)


def test_the_reference_gives_the_published_numbers() -> None:
    state, numbers = 1234567, []
    for _ in range(3):
        state, number = splitmix64(state)
        numbers.append(number)
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_stream_is_splitmix64_from_its_key() -> None:
    streams = Streams(11, 3, device=CPU)
    streams.begin()
    uniform = streams.uniform(6)
    for e in range(3):
        state = int(streams._keys[e])
        for i in range(6):
            state, number = splitmix64(state & WORD)
            assert float(uniform[i, e]) == (number >> 11) * 2.0**-53


def test_mixing_is_a_bijection_of_bits() -> None:
    words = mix_(torch.arange(-5000, 5000))
    assert len(words.unique()) == 10_000


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**200 + 5])
def test_any_integer_is_a_seed(seed: int) -> None:
    numbers = Streams(seed, 4, device=CPU).uniform(4)
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_copies_do_not_see_how_many_they_are() -> None:
    few, many = Streams(7, 3, device=CPU), Streams(7, 50, device=CPU)
    for _ in range(3):
        few.begin()
        many.begin()
        assert torch.equal(few.uniform(9), many.uniform(9)[:, :3])


def test_copies_whose_episode_goes_on_keep_their_numbers() -> None:
    streams = Streams(7, 3, device=CPU)
    streams.begin()
    before = streams.uniform(4)
    streams.begin(torch.tensor([False, True, False]))
    after = streams.uniform(4)
    assert torch.equal(before[:, ::2], after[:, ::2])
    assert (before[:, 1] != after[:, 1]).all()
    assert streams.episode.tolist() == [0, 1, 0]


def test_a_later_start_continues_the_stream() -> None:
    streams = Streams(7, 3, device=CPU)
    whole = streams.uniform(10)
    assert torch.equal(streams.uniform(4, start=6), whole[6:])
    starts = torch.tensor([0, 3, 6])
    parts = streams.uniform(4, start=starts)
    for e, start in enumerate(starts.tolist()):
        assert torch.equal(parts[:, e], whole[start : start + 4, e])


def test_numbers_are_uniform_and_independent_across_seeds_copies_episodes_and_places() -> None:
    seeds = []
    for seed in range(20):
        streams, episodes = Streams(seed, 20, device=CPU), []
        for _ in range(20):
            streams.begin()
            episodes.append(streams.uniform(20))
        seeds.append(torch.stack(episodes))
    numbers = torch.stack(seeds).numpy()  # seed, episode, place, copy
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.01
    for axis in range(4):
        pairs = np.moveaxis(numbers, axis, 0)
        correlation = np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(pairs[1:].size)
