"""Random numbers that belong to a copy, an episode and a place in it, on any device.

A generator that fills tensors in order gives copy e other numbers when the number of copies changes, and
another device another sequence. Here a number is a hash of where it is used, so that neither matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


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
        device: Where the numbers are made.

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
        """What `set_state` takes."""
        return {"copies": self._copies.clone(), "episode": self.episode.clone()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Continues from where `get_state` was asked."""
        self._copies = state["copies"].clone()
        self.jump(state["episode"].clone())

    def uniform(self, count: int, *, start: int | Tensor = 0) -> Tensor:
        """Numbers of the current episodes, in the unit interval.

        Args:
            count: How many for each copy.
            start: The first one's place in the stream; a tensor `[E]` for a place in each.

        Returns:
            `[count, E]` float64 in [0, 1), 53 random bits each.
        """
        places = torch.arange(1, count + 1, device=self._keys.device)[:, None] + start
        words = mix_(places * _signed(_GOLDEN) + self._keys)
        return _logical_shift(words, 11).to(torch.float64).mul_(2.0**-53)
