"""PPO's loss of one discrete action by a compiled kernel: thirty small operations of PyTorch in one call."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from marl_aajr.core.compiled import compiled
from marl_aajr.core.distributions import ActionDistribution, Categorical

_LANES = 16  # at most


def served(distribution: ActionDistribution, logits: Tensor) -> bool:
    """Whether the kernel serves for a distribution with such parameters."""
    plain = logits.dtype == torch.float32 and logits.device.type == "cpu"
    return type(distribution) is Categorical and plain and _library() is not None


def loss_of_choice(
    logits: Tensor, columns: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], coefficients: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """`marl_aajr.rllib.lean.ppo_loss.loss_and_gradient`, where `served`.

    Args:
        logits: `[N, m]`, N > 0.
        columns: Values, actions, old log-probabilities, advantages and value targets, `[N]` each.
        coefficients: The clip of the ratio and of the value error, the weights of value loss and entropy.
    """
    library = _library()
    assert library is not None
    values, actions, *rest = columns
    kept = [logits, values, actions.long(), *(column.to(logits.dtype) for column in rest)]
    kept = [tensor.contiguous() for tensor in kept]
    by_logits, by_values = torch.empty_like(kept[0]), torch.empty_like(kept[1])
    n, m = logits.shape
    room = logits.new_empty((2 * m + 8) * _LANES)
    loss = library.ppo_choice(
        n,
        m,
        *(tensor.data_ptr() for tensor in kept),
        *coefficients,
        *(tensor.data_ptr() for tensor in (by_logits, by_values, room)),
    )
    return logits.new_tensor(loss), by_logits, by_values


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled(Path(__file__).with_suffix(".cpp"))
    if library is not None:
        numbers, pointers = [ctypes.c_int64] * 2, [ctypes.c_void_p] * 6
        library.ppo_choice.argtypes = [*numbers, *pointers, *[ctypes.c_float] * 4, *pointers[:3]]
        library.ppo_choice.restype = ctypes.c_float
    return library
