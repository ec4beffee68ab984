"""What one seed stands for: its episodes, and streams of random numbers and of other episodes beside them."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers or episodes are for."""

    ATTACK = 1 << 31
    ACTIONS = ATTACK + 1
    SELECTION = ATTACK + 2
    FIT = ATTACK + 3
    PROBE = ATTACK + 4
    REPLACED = ATTACK + 5
    TIMING = ATTACK + 6
    DEMONSTRATION = ATTACK + 7
    ADVERSARY_SELECTION = ATTACK + 8


def stream(seed: int, purpose: Purpose) -> torch.Generator:
    """The random numbers of one purpose: the same for all attacks and sizes, apart from the episodes'."""
    return torch.Generator().manual_seed(_state(seed, purpose))


def derived_seed(seed: int, purpose: Purpose) -> int:
    """A seed in [0, 2³¹) of the episodes for one purpose."""
    return _state(seed, purpose) >> 33


def _state(seed: int, purpose: Purpose) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(int(purpose),)).generate_state(1, np.uint64)[0])
