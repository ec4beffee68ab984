"""Which rows go into which minibatch, in RLlib's order without its batches.

`MiniBatchCyclicIterator` slices, concatenates and shuffles whole batches of columns for every minibatch,
which takes longer than the forward pass of a small network. Here an order is an index, and rows are gathered
once for several minibatches, which are slices of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from torch import Tensor

from marl_aajr.core.policy import map_tree

Index = NDArray[np.int64]

GATHERED = 2**14
"""Rows that are gathered at a time: enough for one call to cost nothing, few enough to stay in the cache."""


@contextmanager
def unfilled_memory() -> Iterator[None]:
    """Within this block new memory is as it is found.

    Deterministic algorithms, which RLlib's seeds ask for, come with NaN in all memory before its use. That
    is a sixth of an update, and of use only where somebody reads what nobody has written.
    """
    settings: Any = torch.utils.deterministic
    before, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before


@dataclass(frozen=True)
class Division:
    """How a batch is divided into minibatches; padded sequences are rows.

    Attributes:
        rows: Number of rows of each module, at least 1.
        sizes: Rows of each module in a minibatch.
        several: Minibatches whose rows are gathered at once.
    """

    rows: Mapping[str, int]
    sizes: Mapping[str, int]
    several: int

    @classmethod
    def of(cls, batches: Mapping[str, Any], size: int) -> Division:
        """Minibatches of `size` steps of each module; of sequences, as many as have so many on average."""
        rows, sizes = {}, {}
        for name, columns in batches.items():
            steps, lengths = len(columns), columns.get(Columns.SEQ_LENS)
            rows[name] = steps if lengths is None else len(lengths)
            sizes[name] = size if lengths is None else max(1, int(rows[name] * (size / steps)))
        return cls(rows, sizes, max(1, GATHERED // size))

    def minibatches(self, epochs: int) -> int:
        """Their number: as many as the longest needs."""
        return max(-(-epochs * rows // self.sizes[name]) for name, rows in self.rows.items())

    def steps_of(self, name: str, columns: Mapping[str, Any]) -> Any:
        """The steps of a module in a minibatch; a tensor where they must be counted."""
        lengths = columns.get(Columns.SEQ_LENS)
        return self.sizes[name] if lengths is None else lengths.sum()


def minibatches(parts: Division, *, total: int, shuffle: bool) -> Iterator[dict[str, Index]]:
    """Indices of the rows of each module, minibatch by minibatch.

    Every module contributes its size to every minibatch, going round through its rows. The first time,
    rows are in the order given; if `shuffle`, they are shuffled before each of the others. As in RLlib,
    NumPy's global generator does it, so that the same seed gives the same minibatches as RLlib's learner.

    Args:
        parts: The division.
        total: Number of minibatches.
        shuffle: Whether to.
    """
    cycles = {name: _cycle(rows, parts.sizes[name], shuffle=shuffle) for name, rows in parts.rows.items()}
    for _ in range(total):
        yield {name: next(cycle) for name, cycle in cycles.items()}


def _cycle(rows: int, size: int, *, shuffle: bool) -> Iterator[Index]:
    """`size` rows of one module at a time, round and round."""
    order: Index = np.arange(rows)
    start = 0
    while True:
        pieces, missing = [], size
        while start + missing >= rows:
            pieces.append(order[start:])
            missing -= rows - start
            start = 0
            if shuffle:
                order = order[np.random.permutation(rows)]  # noqa: NPY002
        if missing:
            pieces.append(order[start : start + missing])
            start += missing
        yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def rows_of(
    columns: Mapping[str, Any],
    order: Iterator[dict[str, Index]],
    parts: Division,
    *,
    device: torch.device,
    without: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """The minibatches of an order: rows are gathered once for several of them, and then sliced.

    Args:
        columns: Of each module, a tree whose tensors have one length.
        order: Of `minibatches`.
        parts: The division.
        device: Of the columns.
        without: Columns that nobody reads.
    """
    read = {
        name: {key: part for key, part in rows.items() if key not in without}
        for name, rows in columns.items()
    }
    kept = {name: _tensors(rows) for name, rows in read.items()}
    while chosen := list(islice(order, parts.several)):
        taken = {}
        for name in chosen[0]:
            index = torch.from_numpy(np.concatenate([rows[name] for rows in chosen])).to(device)
            taken[name] = map_tree(partial(torch.index_select, dim=0, index=index), kept[name])
        for i in range(len(chosen)):
            cut = {name: itemgetter(slice(i * n, (i + 1) * n)) for name, n in parts.sizes.items()}
            yield {name: map_tree(cut[name], rows) for name, rows in taken.items()}


def _tensors(columns: Any) -> Any:
    """The columns that are tensors; RLlib's connectors also make lists of infos."""
    if isinstance(columns, Mapping):
        parts = {key: _tensors(part) for key, part in columns.items()}
        return {key: part for key, part in parts.items() if part is not None}
    return columns if isinstance(columns, Tensor) else None
