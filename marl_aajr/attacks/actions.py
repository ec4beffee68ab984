"""Actions of the players of a game, as its spaces define them."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor


def no_action(space: spaces.Space[Any], num_envs: int, *, device: torch.device) -> Tensor:
    """Zeros, ``[E, ...]``."""
    kind = torch.float32 if isinstance(space, spaces.Box) else torch.int64
    return torch.zeros((num_envs, *(space.shape or ())), dtype=kind, device=device)


def check_action(player: str, action: Tensor, space: spaces.Space[Any], num_envs: int) -> None:
    """Raise ``ValueError`` for actions of the wrong shape or kind."""
    shape, whole = (num_envs, *(space.shape or ())), not isinstance(space, spaces.Box)
    if tuple(action.shape) != shape or (whole and action.is_floating_point()):
        raise ValueError(
            f"expected actions of {player!r} as {'integers' if whole else 'numbers'} of shape {shape}, "
            f"got {action.dtype} of shape {tuple(action.shape)}"
        )
