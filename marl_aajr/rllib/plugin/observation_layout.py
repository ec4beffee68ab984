"""The numbers of an observation that an adversary may move, gathered into one vector.

A leaf of a nested (Dict, Tuple) observation is named by its path, `camera/depth` or `1/position`; a name
also stands for everything below it, so `camera` means all leaves of that part. Where a connector has
flattened the observation (`FlatLayout`), its leaves keep their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from torch import Tensor

from marl_aajr.core.environment_values import ACTION_MASK
from marl_aajr.core.flat_observations import check_mask_is_named, is_fixed, parts

Leaves = Collection[str]


@dataclass(frozen=True)
class ObservationLayout:
    """The places of the perturbed leaves in an observation.

    They become one vector in the order of the structure, whatever the order in which they were named: keys of
    dicts sorted, elements of tuples as they come, each leaf row by row. `mask`, `scale`, `low` and
    `high` of a perturbation set are in this order.

    Attributes:
        structure: An observation batch of the same nesting.
        chosen: Number of each perturbed leaf among all leaves.
        shapes: Its shape without the leading dimensions.
        lead: Number of leading dimensions of a leaf that are rows, 2 for recurrent modules.
    """

    structure: Any
    chosen: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    lead: int

    @classmethod
    def of(cls, obs: Any, *, lead_dims: int, leaves: Leaves | None = None) -> ObservationLayout:
        """The layout of an observation batch: nested tensors `[B, ...]`, or `[B, T, ...]`.

        Perturbed are the leaves of these names; None: all of floating-point numbers but action masks.

        Raises:
            ValueError: A name that is none of a leaf that can be perturbed, or nothing to perturb.
        """
        found = tree.flatten_with_path(obs)
        chosen = _chosen(found, leaves)
        shapes = tuple(found[i][1].shape[lead_dims:] for i in chosen)
        return cls(obs, chosen, shapes, lead_dims)

    def flatten(self, obs: Any) -> Tensor:
        """The perturbed leaves of an observation batch as `[B, ..., d]`."""
        leaves = tree.flatten(obs)
        parts = [
            leaves[i].reshape(*leaves[i].shape[: self.lead], shape.numel())
            for i, shape in zip(self.chosen, self.shapes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def rest(self, obs: Any) -> list[Tensor]:
        """The other leaves."""
        return [leaf for i, leaf in enumerate(tree.flatten(obs)) if i not in self.chosen]

    def merge(self, flat: Tensor, rest: Sequence[Tensor]) -> Any:
        """An observation batch with the perturbed leaves from `flat` and the others from `rest`."""
        rows = flat.shape[: self.lead]
        leaves = list(rest)
        parts = flat.split([shape.numel() for shape in self.shapes], -1)
        for i, part, shape in zip(self.chosen, parts, self.shapes, strict=True):
            leaves.insert(i, part.reshape(*rows, *shape))
        return tree.unflatten_as(self.structure, leaves)


@dataclass(frozen=True)
class FlatLayout:
    """`ObservationLayout` of an observation that a connector has flattened to one vector, by `places [d]`."""

    places: Tensor

    def flatten(self, obs: Tensor) -> Tensor:
        return obs[..., self.places.to(obs.device)]

    def rest(self, obs: Tensor) -> list[Tensor]:
        return [obs]

    def merge(self, flat: Tensor, rest: Sequence[Tensor]) -> Tensor:
        return rest[0].index_copy(-1, self.places.to(flat.device), flat)


def flat_layout(
    width: int, structures: Sequence[Any], *, leaves: Leaves | None, actions: gym.Space[Any]
) -> FlatLayout | None:
    """The layout of flattened observations; None where all their numbers may be perturbed.

    It has no places where none may be, because all stand for integers or are masks.

    Args:
        width: D.
        structures: the nested spaces that may have been flattened.
        leaves: see `ObservationLayout.of`.
        actions: the space of the actions that a mask may be about.

    Raises:
        ValueError: which of the numbers are masks, or stand for integers, cannot be said.
    """
    if not any(is_fixed(*part) for structure in structures for part in parts(structure)):
        return None
    layouts = {
        tuple(_places(structure, leaves, actions))
        for structure in structures
        if sum(gym.spaces.flatdim(space) for _, space in parts(structure)) == width
    }
    if len(layouts) != 1:
        raise ValueError(
            f"expected to follow which of the {width} numbers of a network may be perturbed, which are "
            "neither action masks nor stand for integers, got connectors of your own from "
            f"{', '.join(map(str, structures))}; say it: mask=[True, False, ...]"
        )
    (places,) = layouts
    return None if len(places) == width else FlatLayout(torch.tensor(places, dtype=torch.int64))


def check_masks(space: gym.Space[Any], leaves: Leaves | None, actions: gym.Space[Any]) -> None:
    """Raise `ValueError` where a part of a nested observation may be an action mask under another name."""
    if leaves is None:
        check_mask_is_named(space, actions, instead="name what may be perturbed: leaves=[...]")


def _places(structure: Any, leaves: Leaves | None, actions: gym.Space[Any]) -> list[int]:
    """The places of the perturbed numbers; none where nothing may be perturbed."""
    check_masks(structure, leaves, actions)
    found = list(parts(structure))
    kinds = [(path, torch.int64 if is_fixed(path, space) else torch.float32) for path, space in found]
    if all(kind == torch.int64 for _, kind in kinds):
        return []
    starts = np.cumsum([0, *(gym.spaces.flatdim(space) for _, space in found)])
    chosen = _chosen([(path, torch.zeros(1, dtype=kind)) for path, kind in kinds], leaves)
    return [place for i in chosen for place in range(starts[i], starts[i + 1])]


def _chosen(found: Sequence[tuple[tuple[Any, ...], Tensor]], leaves: Leaves | None) -> tuple[int, ...]:
    names = ["/".join(map(str, path)) for path, _ in found]
    free = [i for i, (path, leaf) in enumerate(found) if ACTION_MASK not in path and leaf.is_floating_point()]
    known = ", ".join(names[i] for i in free)
    if not free:
        kinds = ", ".join(sorted({str(leaf.dtype) for _, leaf in found}))
        raise ValueError(
            f"expected observations with floating-point numbers to perturb, got {kinds}; "
            "convert them in the environment (for example obs.astype(np.float32))"
        )
    if leaves is None:
        return tuple(free)
    if names == [""]:
        raise ValueError(
            f"expected no leaves for an observation that is one array, got {', '.join(leaves)}; use mask to "
            "choose features"
        )
    for name in leaves:
        if not any(_stands_for(name, names[i]) for i in free):
            why = _why_not(name, dict(zip(names, (leaf for _, leaf in found), strict=True)))
            raise ValueError(f"expected leaves out of {known}, got {name!r}{why}")
    return tuple(i for i in free if any(_stands_for(name, names[i]) for name in leaves))


def _stands_for(name: str, leaf: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}/")


def _why_not(name: str, leaves: Mapping[str, Tensor]) -> str:
    if name not in leaves:
        return ""
    if ACTION_MASK in name.split("/"):
        return ", which is an action mask"
    return f", which holds {leaves[name].dtype}; convert it in the environment"


def chosen_parts(space: gym.Space[Any], leaves: Leaves | None) -> tuple[int, ...]:
    """The number of each part of a nested space that is perturbed, of all its parts.

    Raises:
        ValueError: names that are none of a perturbable part, or nothing to perturb.
    """
    kinds = [
        (path, part.dtype if isinstance(part, gym.spaces.Box) else np.int64) for path, part in parts(space)
    ]
    return _chosen([(path, torch.from_numpy(np.zeros(1, kind))) for path, kind in kinds], leaves)
