"""The adversary's path in the rollout, kept in compact form for a regularizer that follows it.

Of each attacked row a point δ_t and the direction of ascent u_t there, in the units that the network reads,
as float16: 4 d bytes. Behind a filter of scale σ these are δ_t / σ and the unit vector along σ v_t, the
gradient by what the network reads. Rows that nobody attacks have zeros there, and so no direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

KEPT = torch.float16


def kept_path(
    attack: RolloutAttack,
    found: Ascended,
    scale: Tensor | None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """δ_t and u_t of one point of each row's path, drawn uniformly, or of all K: `[N, 2, points, d]`.

    Args:
        attack: The attack; `path` says which points.
        found: Its path.
        scale: σ, `[d]`; None: 1.
        generator: Source of the draw.
    """
    path = torch.stack([torch.stack(found.deltas, 1), torch.stack(found.gradients, 1)], 1)
    if attack.path == "one":
        rows = torch.arange(len(path), device=path.device)
        drawn = torch.randint(attack.steps, (len(path),), generator=generator, device=path.device)
        path = path[rows, :, drawn].unsqueeze(2)
    if scale is not None:
        path = path * torch.stack([1 / scale, scale]).unsqueeze(1)
    norms = torch.linalg.vector_norm(path[:, 1], dim=-1, keepdim=True)
    path[:, 1] /= norms.where(norms > torch.finfo(norms.dtype).tiny, torch.inf)
    return path.to(KEPT)
