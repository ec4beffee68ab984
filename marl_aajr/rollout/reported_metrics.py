"""Metrics of episodes that environments report beside rewards, as arrays: see `game_agents.reported`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marl_aajr.rollout.game_agents import reported


def by_copy(infos: Sequence[Mapping[Any, Any]], over: Tensor) -> dict[str, Tensor]:
    """The metrics of the copies whose episode is over, `[E]` float64 by name; NaN where none was reported."""
    found: dict[str, Tensor] = {}
    for copy in over.nonzero().flatten().tolist():
        for name, value in reported(infos[copy]).items():
            unknown = torch.full(over.shape, torch.nan, dtype=torch.float64, device=over.device)
            found.setdefault(name, unknown)[copy] = value
    return found


def of_episodes(steps: Sequence[Mapping[str, Tensor]], over: Tensor) -> dict[str, Tensor]:
    """The metrics of the episodes that ended in T steps, in the order of their ends, `[n]` on the CPU.

    Args:
        steps: `BatchedStep.metrics` of each.
        over: `[T, E]` bool, where episodes ended.
    """
    names = dict.fromkeys(name for metrics in steps for name in metrics)
    unknown = torch.full(over.shape[1:], torch.nan, dtype=torch.float64, device=over.device)
    return {
        name: torch.stack([metrics.get(name, unknown).double() for metrics in steps])[over].cpu()
        for name in names
    }
