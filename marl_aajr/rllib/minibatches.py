"""Which rows go into which minibatch: RLlib's order, without its batches.

``MiniBatchCyclicIterator`` slices, concatenates and shuffles whole batches of columns, which takes longer
than the forward pass of a small network. Here a minibatch is an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def minibatches(
    rows: Mapping[str, int], *, size: int, epochs: int, shuffle: bool, total: int = 0
) -> Iterator[dict[str, Index]]:
    """Indices of the rows of each module, minibatch by minibatch.

    Every module contributes ``size`` rows to every minibatch, going round through its rows until the last of
    them has been through all of its rows ``epochs`` times. The first time, rows are in the order given; if
    ``shuffle``, they are shuffled before each of the others. As in RLlib, NumPy's global generator does it,
    so that the same seed gives the same minibatches as RLlib's learner.

    Args:
        rows: How many each module has, at least 1.
        size: Rows of each module in a minibatch.
        epochs: Passes over the rows.
        shuffle: Whether to.
        total: If positive, the number of minibatches, whatever the epochs.
    """
    cycles = {module: _Cycle(count, shuffle=shuffle) for module, count in rows.items()}
    made = 0
    while made < total if total else min(cycle.completed for cycle in cycles.values()) < epochs:
        yield {module: cycle.take(size) for module, cycle in cycles.items()}
        made += 1


def needed(rows: int, *, size: int, epochs: int) -> int:
    """How many minibatches it takes to go through ``rows`` that many times."""
    return -(-epochs * rows // size)


class _Cycle:
    """The rows of one module, round and round."""

    def __init__(self, rows: int, *, shuffle: bool) -> None:
        self._order: Index = np.arange(rows)
        self._shuffle = shuffle
        self._start = 0
        self.completed = 0

    def take(self, count: int) -> Index:
        """The next rows."""
        pieces = []
        while self._start + count >= len(self._order):
            pieces.append(self._order[self._start :])
            count -= len(pieces[-1])
            self._start = 0
            self.completed += 1
            if self._shuffle:
                self._order = self._order[np.random.permutation(len(self._order))]  # noqa: NPY002
        if count:
            pieces.append(self._order[self._start : self._start + count])
            self._start += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
