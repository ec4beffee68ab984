"""Collective operations of several learners; all of them must call each, equally often."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

_T = TypeVar("_T")


def all_sum(number: Tensor) -> Tensor:
    """The sum of a number over all learners."""
    total = number.clone()
    dist.all_reduce(total)
    return total


def all_max(number: int, *, device: torch.device) -> int:
    """The largest of a number over all learners."""
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def gather(value: _T) -> Sequence[_T]:
    """The value of each learner, in their order."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_all_have_rows(batch: Mapping[str, Any], modules: Collection[str], *, device: torch.device) -> None:
    """Raise where some learners would wait for ever for the gradient of another.

    Args:
        batch: this learner's share.
        modules: ids of all modules.
        device: of the learner.

    Raises:
        ValueError: in every learner, if one has no row of a module of which another has some.
    """
    names = sorted(modules)
    having = all_sum(torch.tensor([float(name in batch) for name in names], device=device)).tolist()
    learners = dist.get_world_size()
    for name, count in zip(names, having, strict=True):
        if 0 < count < learners:
            raise ValueError(
                f"expected rows of module {name!r} for each of the {learners} learners, got some for "
                f"{count:.0f} of them only, and these would wait for the others for ever; collect more "
                "episodes for an update, or set num_learners=0"
            )
