"""Products of float32 matrices by the library that is fastest at them on this processor; memory for them.

PyTorch multiplies by MKL, which leaves half of an AMD core idle (it takes AVX2 where AVX-512 is there): 105
GFLOP/s on a Zen 5, where oneDNN, by which PyTorch makes convolutions and compiled programs, does 240. What is
chosen depends on the processor and the shapes only, so that the same seed gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NARROWEST = 64
"""oneDNN lays its operands out anew, which narrow matrices do not repay."""
LEAST_WORK = 2**20
"""Multiplications below which its call takes longer than the work."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, factor: float = 1.0) -> Tensor:
    """`factor · a bᵀ + bias`, `[n, k]`, `[m, k]` and `[m]` to `[n, m]`; without a graph."""
    (n, k), m = a.shape, len(b)
    fits = min(n, k, m) >= NARROWEST and n * k * m >= LEAST_WORK and a.dtype == torch.float32
    onednn = fits and a.device.type == "cpu" and onednn_is_faster()
    if bias is not None and not onednn:
        return torch.addmm(bias, a, b.t(), alpha=factor)
    if factor != 1.0 and bias is None and n * m < k * min(n, m):  # the factor goes to what is smallest
        return product(a, b).mul_(factor)
    if factor != 1.0:
        a, b = (a * factor, b) if n < m and bias is None else (a, b * factor)
    if not onednn:
        return a @ b.t()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return found


@cache
def onednn_is_faster() -> bool:
    """Whether PyTorch multiplies by MKL on an AMD processor with AVX-512, and has oneDNN as well."""
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return amd and wide and has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
