"""How many rows pass a network at a time: what a block needs stays in the processor's cache.

An accelerator takes everything at once: there it is launches that cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

BLOCK = 1024
"""Rows of a block; their values and tangents in a layer of 64 take half a megabyte."""

ALL_ROWS = slice(None)


def row_blocks(obs: Tensor) -> list[slice]:
    """Consecutive rows of ``[B, ..., d]``, about :data:`BLOCK` vectors d at a time."""
    rows = len(obs)
    size = max(1, BLOCK // max(1, obs.shape[1:-1].numel()))
    if obs.device.type != "cpu" or rows <= size:
        return [ALL_ROWS]
    return [slice(start, start + size) for start in range(0, rows, size)]


def point_blocks(points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Points and rows of ``[T, B, ..., d]``, about :data:`BLOCK` vectors d at a time."""
    count, obs = len(points), points[0]
    rows = row_blocks(obs)
    together = 1 if len(rows) > 1 else max(1, BLOCK // max(1, obs.shape[:-1].numel()))
    if obs.device.type != "cpu":
        together = count
    for t in range(0, count, together):
        yield from ((slice(t, t + together), part) for part in rows)
