"""Non-finite numbers stop with the name of their origin; nothing is silently zeroed."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity, with where it arose."""


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise :class:`NonFiniteError` where ``tensor`` holds a NaN or an infinity.

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
