"""How many cores torch takes: small networks gain nothing from a second one, and waiting threads burn it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
