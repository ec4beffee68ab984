"""Numerical care: numbers that are not finite, the root at zero, and the number of threads.

Non-finite numbers stop with the name of their origin; nothing is silently zeroed. Small networks gain
nothing from a second thread of torch, and a thread that waits burns its processor.
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


def safe_sqrt(squared: Tensor) -> Tensor:
    """√x with gradient 0 at x = 0, where its own is infinite; NaN stays NaN."""
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


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
