"""Episodes that an adversary learns on or is chosen on, apart from those that it is reported on."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What episodes are for."""

    SELECTION = 0x5E1
    DEMONSTRATION = 0xDE3


def derived_seed(seed: int, purpose: Purpose) -> int:
    """A seed in [0, 2³¹) of the episodes for one purpose."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0] >> 1)
