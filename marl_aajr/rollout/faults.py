"""Checks of what an environment says: every observation passes one on its way in.

A NaN that enters here would come out as a NaN loss thousands of steps later, without a name. The checks
are closures built once per space, because they run for every agent at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

Check = Callable[[Any], Any]
"""Takes an observation, returns it in the dtype of its space, or raises `ValueError` with the reason."""


class EnvironmentFault(RuntimeError):  # noqa: N818 - it is the environment that is at fault, not the call
    """An environment broke its own contract; the message names it, the agent and the step."""


def observation_check(space: spaces.Space[Any]) -> Check:
    """Builds the check of one observation space.

    Boxes must have the right shape and no NaN or Inf; their dtype is converted where no value changes
    (or from one float precision to another). Dict and Tuple spaces are checked leaf by leaf, and what
    they contain beyond the space is dropped. Everything else is asked whether it contains the value.

    Args:
        space: The space that the environment declared.

    Returns:
        A function from an observation to the same observation, which raises `ValueError` otherwise.
    """
    if isinstance(space, spaces.Box):
        return _box_check(space)
    if isinstance(space, spaces.Dict):
        return _dict_check({key: observation_check(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return _tuple_check(tuple(observation_check(part) for part in space.spaces))
    return _member_check(space)


def _box_check(space: spaces.Box) -> Check:
    shape, dtype = space.shape, np.dtype(space.dtype)
    floating = bool(np.issubdtype(dtype, np.floating))

    def check(obs: Any) -> Any:
        if type(obs) is not np.ndarray or obs.dtype != dtype:
            obs = _convert(obs, dtype)
        if obs.shape != shape:
            raise ValueError(f"has shape {obs.shape}, its space says {shape}")
        if floating and not np.isfinite(obs).all():
            raise ValueError(f"is not finite at {_where(~np.isfinite(obs))}")
        return obs

    return check


def _convert(obs: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    given = np.asarray(obs)
    if np.issubdtype(dtype, np.floating):
        if np.can_cast(given.dtype, dtype, "same_kind"):
            return given.astype(dtype)
    elif np.can_cast(given.dtype, np.int64, "same_kind"):
        converted = given.astype(dtype)
        if np.array_equal(converted, given):
            return converted
    raise ValueError(f"has dtype {given.dtype}, its space says {dtype}")


def _where(bad: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """The first few bad entries, as indices that a person can look up."""
    found = [int(i[0]) if len(i) == 1 else tuple(map(int, i)) for i in np.argwhere(bad)[:4]]
    more = int(bad.sum()) - len(found)
    return f"{found}" + (f" and {more} more" if more > 0 else "")


def _dict_check(parts: dict[str, Check]) -> Check:
    def check(obs: Any) -> Any:
        checked = {}
        for key, part in parts.items():
            try:
                value = obs[key]
            except (KeyError, TypeError, IndexError):
                raise ValueError(f"lacks the key {key!r}") from None
            try:
                checked[key] = part(value)
            except ValueError as reason:
                raise ValueError(f"[{key!r}] {reason}") from None
        return checked

    return check


def _tuple_check(parts: tuple[Check, ...]) -> Check:
    def check(obs: Any) -> Any:
        if len(obs) != len(parts):
            raise ValueError(f"has {len(obs)} parts, its space says {len(parts)}")
        return tuple(part(value) for part, value in zip(parts, obs, strict=True))

    return check


def _member_check(space: spaces.Space[Any]) -> Check:
    def check(obs: Any) -> Any:
        if not space.contains(obs):
            raise ValueError(f"is {obs!r}, which its space {space} does not contain")
        return obs

    return check
