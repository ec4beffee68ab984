"""Two passes at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

import torch

from marl_aajr.rllib.internals.cores import own_cores

_A = TypeVar("_A")
_B = TypeVar("_B")


class SideBySide:
    """Two passes at the same time where a core is free and they are long: to the same numbers.

    Neither of two threads waits busily for the other, unlike the threads of one product.

    Args:
        device: The device of the passes; an accelerator overlaps them by itself.
    """

    LEAST_WORK: ClassVar[int] = 2**25
    """Multiplications below which handing a pass over takes longer than it saves."""

    def __init__(self, device: torch.device) -> None:
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cpu" and own_cores() > 1:
            self._thread = ThreadPoolExecutor(
                1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
            )

    def __call__(self, first: Callable[[], _A], second: Callable[[], _B], work: int) -> tuple[_A, _B]:
        """What both return; `work` are the multiplications of each. No graph is recorded."""
        if self._thread is None or work < self.LEAST_WORK:
            return first(), second()
        beside = self._thread.submit(torch.no_grad()(second))
        return first(), beside.result()
