"""The same numbers from one seed: streams by purpose, and streams that belong to a copy and an episode.

A generator that fills tensors in order gives copy e other numbers when the number of copies changes, and
another device another sequence. In `Streams` a number is a hash of where it is used, so neither matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Purpose(IntEnum):
    """The purposes that random numbers and episodes serve."""

    ATTACK = 1 << 31
    ACTIONS = ATTACK + 1
    SELECTION = ATTACK + 2
    FIT = ATTACK + 3
    PROBE = ATTACK + 4
    REPLACED = ATTACK + 5
    TIMING = ATTACK + 6
    DEMONSTRATION = ATTACK + 7
    ADVERSARY_SELECTION = ATTACK + 8
    ROLLOUT_ATTACK = ATTACK + 9
    ADVERSARY_SEARCH = ATTACK + 10


def stream(seed: int, purpose: Purpose) -> torch.Generator:
    """The random numbers of one purpose: the same for all attacks and sizes, apart from the episodes'."""
    return torch.Generator().manual_seed(_state(seed, purpose))


def derived_seed(seed: int, purpose: Purpose, *place: int) -> int:
    """A seed in [0, 2³¹) for one purpose, and for a place within it."""
    return _state(seed, purpose, *place) >> 33


def _state(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=tuple(map(int, key))).generate_state(1, np.uint64)[0])


class RowGenerators:
    """Random numbers for several batches as one: each draws from its own generator what it draws alone.

    Batches of one size whose generators are in the same state draw the same numbers, so they are drawn once.

    Args:
        generators: one of each batch, in their order; moved on when the context ends.
        counts: the rows of each batch.
    """

    def __init__(self, generators: Sequence[torch.Generator], counts: Sequence[int]) -> None:
        self._generators = list(generators)
        states = [generator.get_state().numpy().tobytes() for generator in generators]
        keys = list(zip(states, counts, strict=True))
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        self._place = [places[key] for key in keys]
        first = [self._place.index(place) for place in range(len(places))]
        self._drawing = [(generators[i], counts[i]) for i in first]

    def __enter__(self) -> RowGenerators:
        return self

    def __exit__(self, *_: object) -> None:
        for generator, place in zip(self._generators, self._place, strict=True):
            if generator is not (leader := self._drawing[place][0]):
                generator.set_state(leader.get_state())

    def draw(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """The draws of all batches, one after the other; see `drawn`."""
        found = [draw(like[:rows], generator) for generator, rows in self._drawing]
        return torch.cat([found[place] for place in self._place]) if len(self._place) > 1 else found[0]


Randomness = torch.Generator | RowGenerators


def drawn(
    like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor], *, generator: Randomness
) -> Tensor:
    """`draw(like, generator)`: random numbers for each row of `like`.

    Of some rows at a time, where `RowGenerators` have a generator for each batch of them.
    """
    return generator.draw(like, draw) if isinstance(generator, RowGenerators) else draw(like, generator)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread of torch within this block, or within the function that this decorates; then as before.

    The numbers are those of a worker process, which has one thread too, on any machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits, because torch has no unsigned arithmetic."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: a bijection of 64-bit words that scatters every input bit.

    `z ^= z >>> 30; z *= c1; z ^= z >>> 27; z *= c2; z ^= z >>> 31` (Steele, Lea, Flood 2014,
    "Fast splittable pseudorandom number generators"), with arithmetic modulo 2^64.
    """
    for shift, factor in _ROUNDS:
        z.bitwise_xor_(_logical_shift(z, shift)).mul_(_signed(factor))
    return z.bitwise_xor_(_logical_shift(z, _LAST_SHIFT))


def _logical_shift(z: Tensor, shift: int) -> Tensor:
    return (z >> shift).bitwise_and_((1 << (64 - shift)) - 1)


class Streams:
    """One stream of uniform numbers for each copy and episode.

    Number i of episode k of copy e is `mix(key(seed, e, k) + (i + 1) γ)`, the SplitMix64 sequence from a
    key that is hashed from seed, copy and episode in turn.

    Args:
        seed: Any integer; taken modulo 2^64.
        num_envs: E, the number of copies.
        device: Device that makes the numbers.

    Attributes:
        episode: `[E]` int64, the current episode of each copy.
    """

    def __init__(self, seed: int, num_envs: int, *, device: torch.device) -> None:
        root = mix_(torch.tensor([_signed(seed)], device=device))
        copies = torch.arange(1, num_envs + 1, device=device)
        self._copies = mix_(copies * _signed(_GOLDEN) + root)
        self.episode = torch.full((num_envs,), -1, device=device)
        self._keys = self._copies

    def begin(self, where: Tensor | None = None) -> None:
        """Moves copies on to their next episode.

        Args:
            where: `[E]` bool, which copies; None for all.
        """
        self.jump(self.episode + (1 if where is None else where))

    def jump(self, episode: Tensor) -> None:
        """Moves copies to the episodes `[E]`."""
        self.episode = episode
        self._keys = mix_((episode + 1) * _signed(_GOLDEN) + self._copies)

    def get_state(self) -> dict[str, Tensor]:
        """The state, for `set_state`."""
        return {"copies": self._copies.clone(), "episode": self.episode.clone()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Continues from where `get_state` was asked."""
        self._copies = state["copies"].clone()
        self.jump(state["episode"].clone())

    def uniform(self, count: int, *, start: int | Tensor = 0) -> Tensor:
        """Numbers of the current episodes, in the unit interval.

        Args:
            count: Number of them for each copy.
            start: The first one's place in the stream; a tensor `[E]` for a place in each.

        Returns:
            `[count, E]` float64 in [0, 1), 53 random bits each.
        """
        places = torch.arange(1, count + 1, device=self._keys.device)[:, None] + start
        words = mix_(places * _signed(_GOLDEN) + self._keys)
        return _logical_shift(words, 11).to(torch.float64).mul_(2.0**-53)
