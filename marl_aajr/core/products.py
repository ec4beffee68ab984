"""Products of float32 matrices by the library that is fastest at them on this processor.

PyTorch multiplies by MKL, which leaves half of an AMD core idle (it takes AVX2 where AVX-512 is there): 105
GFLOP/s on a Zen 5, where oneDNN, by which PyTorch makes convolutions and compiled programs, does 240. What is
chosen depends on the processor and the shapes only, so that the same seed gives the same numbers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

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
    if not (fits and a.device.type == "cpu" and onednn_is_faster()):
        given = a.new_empty(1) if bias is None else bias
        return torch.addmm(given, a, b.t(), beta=float(bias is not None), alpha=factor)
    if factor != 1.0 and bias is None and n * m < m * k:  # the factor goes to what is smaller
        return product(a, b).mul_(factor)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        a, b if factor == 1.0 else b * factor, bias, "none", [], ""
    )
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
