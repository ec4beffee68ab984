"""Who gets where on a grid, when two want what only one can have."""

from __future__ import annotations

import torch
from torch import Tensor


def _priority(place: Tensor, aim: Tensor, playing: Tensor) -> Tensor:
    here = place.masked_fill(~playing, -1)
    for own, wanted in zip(here.unbind(0), aim.masked_fill(~playing, -1).unbind(0), strict=True):
        own.copy_(torch.where((here == wanted).any(0), own, wanted))
    return torch.where(playing, here, place)


def _block_both(place: Tensor, aim: Tensor, playing: Tensor) -> Tensor:
    taken = (aim == place.masked_fill(~playing, -1)[:, None]).any(0)
    wanted = ((aim[:, None] == aim) & playing[:, None]).sum(0)
    return torch.where(taken | (wanted > 1), place, aim)


def _soft(place: Tensor, aim: Tensor, playing: Tensor) -> Tensor:
    moves = aim != place
    follows = aim == place.masked_fill(~playing, -1)[:, None]  # [j, i, E]: i wants to enter the cell of j
    agents = torch.arange(len(aim), device=aim.device)
    earlier = (agents[:, None] < agents)[:, :, None]
    exchange = (follows & follows.transpose(0, 1)).any(0)
    outrun = (earlier & (aim[:, None] == aim) & moves[:, None]).any(0)
    able = moves & ~exchange & ~outrun
    alone, leader = ~follows.any(0), follows.to(torch.uint8).argmax(0)
    for _ in agents:  # who cannot move holds up who follows
        able &= alone | able.gather(0, leader)
    return torch.where(able, aim, place)


COLLISION_SYSTEMS = {"priority": _priority, "block_both": _block_both, "soft": _soft}
"""`(place, aim, playing) -> place`, all `[A, E]`: who is where after all have tried to enter free cells."""
