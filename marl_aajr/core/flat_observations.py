"""Observations of any space as one vector, in the form of RLlib's connector `FlattenObservations`.

Dicts come by their sorted keys, and integers (Discrete, MultiDiscrete) one-hot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from operator import getitem
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_aajr.core.environment_values import ACTION_MASK, choices, to_vector

_FLAT = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def nested(space: Any) -> Any:
    """A space with a dict by sorted keys for each Dict in it and a tuple for each Tuple."""
    if isinstance(space, spaces.Dict | dict):
        return {key: nested(space[key]) for key in sorted(space)}
    return tuple(map(nested, space)) if isinstance(space, spaces.Tuple | tuple) else space


def parts(space: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    """The parts of a nested space with the paths to them."""
    space = nested(space)
    if isinstance(space, dict | tuple):
        for key, part in space.items() if isinstance(space, dict) else enumerate(space):
            yield from parts(part, (*path, key))
    else:
        yield path, space


def is_fixed(path: Sequence[Any], part: spaces.Space[Any]) -> bool:
    """Whether nobody may perturb a part of an observation: a mask, or integers beside others."""
    if not isinstance(part, spaces.Box):
        return True
    return ACTION_MASK in path or (len(path) > 0 and not np.issubdtype(part.dtype, np.floating))


def check_mask_is_named(
    space: Any, actions: spaces.Space[Any], *, instead: str, agent: str = "", integers: bool = False
) -> None:
    """Raise `ValueError` where a part of an observation may be a mask of these actions under another name.

    Args:
        space: Of the observation.
        actions: Of the actions.
        instead: What to do where it is none.
        agent: Whose they are, for the message.
        integers: Whether it may be a part of integers, which nobody perturbs.
    """
    for path, part in parts(space):
        unit = isinstance(part, spaces.Box) and bool((part.low == 0).all() and (part.high == 1).all())
        if integers and ACTION_MASK not in path:
            sought = unit or isinstance(part, spaces.MultiBinary)
        else:
            sought = unit and not is_fixed(path, part)
        if path and sought and part.shape == (choices(actions),):
            name, actors = "/".join(map(str, path)), f" of agent {agent!r}" if agent else ""
            raise ValueError(
                f"expected to know whether {name!r} says which actions{actors} are legal, got "
                f"{space} for {actions}; call it {ACTION_MASK} if it does, or {instead}"
            )


def own_part(obs: Any) -> tuple[Any, Any]:
    """An observation (or its space) without its action mask, and the mask; None where it has none.

    A Dict of one other part is that part.
    """
    if not isinstance(obs, Mapping):
        return obs, None
    others = {key: part for key, part in obs.items() if key != ACTION_MASK}
    return next(iter(others.values())) if len(others) == 1 else others, obs.get(ACTION_MASK)


def vector_space(space: spaces.Space[Any]) -> tuple[spaces.Box, spaces.Space[Any] | None]:
    """The space of an observation as an array, without its mask, and the space of the mask."""
    own, mask = own_part(space)
    return own if isinstance(own, spaces.Box) else FlatBox(own), mask


class FlatBox(spaces.Box):
    """Vectors `[d]` that stand for the observations of another space.

    Args:
        structure: The other space, or a dict or tuple of several.

    Raises:
        ValueError: It has parts that are no numbers.
    """

    def __init__(self, structure: Any) -> None:
        self.structure = nested(structure)
        self._parts = tuple(parts(structure))
        if strange := [part for _, part in self._parts if not isinstance(part, _FLAT)]:
            raise ValueError(f"expected observations of numbers, got {strange[0]}; {to_vector(strange[0])}")
        flat: list[Any] = [spaces.flatten_space(part) for _, part in self._parts]
        low, high = (
            np.concatenate([getattr(b, end) for b in flat], dtype=np.float32) for end in ("low", "high")
        )
        super().__init__(low, high, dtype=np.float32)

    @cached_property
    def free(self) -> tuple[bool, ...]:
        """Per feature, whether it may be perturbed: no part of a one-hot, an integer or a mask, `[d]`."""
        return tuple(
            not is_fixed(path, part) for path, part in self._parts for _ in range(spaces.flatdim(part))
        )

    def vector(self, obs: Any) -> NDArray[Any]:
        """An observation of the other space as one of this, `[d]`."""
        return np.concatenate(
            [spaces.flatten(part, reduce(getitem, path, obs)) for path, part in self._parts]
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlatBox) and bool(self.structure == other.structure)

    __hash__ = spaces.Box.__hash__
