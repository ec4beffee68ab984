"""The adversary's path in the rollout, kept in compact form for a regularizer that follows it.

Of each attacked row a point and the direction of ascent u_t there, in the units that the network reads, as
float16: 4 d bytes. Rows that nobody attacks have zeros there, and so no direction.

Behind a filter F(s) = clip((s − μ) / σ, −10, 10) the point is F(s + δ_t) − F(s), which is where the network
was, and not δ_t / σ: features that have stood still have a σ of next to nothing, and F clips what is left of
them. The direction is the unit vector along σ v_t, the gradient by what the network reads: 0 in features that
F clips, along which the adversary moves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_aajr.core.checks import maximum
from marl_aajr.core.end_of_ascent import Ascended
from marl_aajr.rollout.attack.attackable import ActingRows
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

KEPT = torch.float16


def kept_path(
    attack: RolloutAttack, found: Ascended, rows: ActingRows, clean: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Point and direction of one step of each row's path, drawn uniformly, or of all K: `[N, 2, points, d]`.

    Args:
        attack: The attack; `path` says which points.
        found: Its path.
        rows: The attacked rows.
        clean: What the module sees of them when nobody perturbs them, `[N, ...]`.
        generator: Source of the draw.

    Raises:
        ValueError: No filter, and perturbations beyond the numbers of float16.
    """
    path = torch.stack([torch.stack(found.deltas, 1), torch.stack(found.gradients, 1)], 1)
    if attack.path == "one":
        each = torch.arange(len(path), device=path.device)
        drawn = torch.randint(attack.steps, (len(path),), generator=generator, device=path.device)
        path = path[each, :, drawn].unsqueeze(2)
    points, gradients = path.unbind(1)
    if rows.scale is None:
        _check_size(attack)
    else:
        points, gradients = _read(rows, points, clean), gradients * rows.scale
    norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
    directions = gradients / norms.where(norms > torch.finfo(norms.dtype).tiny, torch.inf)
    return torch.stack([points, directions], 1).to(KEPT)


def _read(rows: ActingRows, deltas: Tensor, clean: Tensor) -> Tensor:
    """F(s + δ) − F(s) of δ `[N, points, d]`, the same shape."""
    width = deltas.shape[-1]
    seen = [rows.seen(rows.obs + delta).flatten(1)[:, :width] for delta in deltas.unbind(1)]
    return torch.stack(seen, 1) - clean.flatten(1)[:, None, :width]


def _check_size(attack: RolloutAttack) -> None:
    furthest, most = maximum(attack.epsilon) * max(attack.scale or (1.0,)), torch.finfo(KEPT).max
    if furthest > most:
        raise ValueError(
            f"expected perturbations of at most {most:g} to keep the path of in half precision, got "
            f"{furthest:g} (epsilon times scale); normalise observations (observation_filter mean_std), or "
            "take directions='fresh'"
        )
