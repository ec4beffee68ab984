"""Numerical care: numbers that are not finite, blocks of rows that fit the cache, and the number of threads.

Non-finite numbers stop with the name of their origin; nothing is silently zeroed. On a CPU rows pass a
network in blocks, so that their activations stay in the processor's cache. Small networks gain nothing from
a second thread of torch, and a thread that waits burns its processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity, with where it arose."""


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise `NonFiniteError` where `tensor` holds a NaN or an infinity.

    Args:
        name: what the tensor is, as the message should call it.
        tensor: any shape; reading the answer waits for the accelerator.
    """
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    bad = tensor.detach()[~finite]
    nans = int(bad.isnan().sum())
    raise NonFiniteError(f"{name}: {nans} NaN and {bad.numel() - nans} infinite of {tensor.numel()} numbers")


BLOCK = 1024
"""Rows of a block; their values and tangents in a layer of 64 take half a megabyte."""

ALL_ROWS = slice(None)


def row_blocks(obs: Tensor) -> list[slice]:
    """Consecutive rows of `[B, ..., d]`, about `BLOCK` vectors d at a time."""
    rows = len(obs)
    size = max(1, BLOCK // max(1, obs.shape[1:-1].numel()))
    if obs.device.type != "cpu" or rows <= size:
        return [ALL_ROWS]
    return [slice(start, start + size) for start in range(0, rows, size)]


def point_blocks(points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Points and rows of `[T, B, ..., d]`, about `BLOCK` vectors d at a time."""
    count, obs = len(points), points[0]
    rows = row_blocks(obs)
    together = 1 if len(rows) > 1 else max(1, BLOCK // max(1, obs.shape[:-1].numel()))
    if obs.device.type != "cpu":
        together = count
    for t in range(0, count, together):
        yield from ((slice(t, t + together), part) for part in rows)


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
