"""Values that environments give and take, brought to one form: names, observations, legal actions, actions.

PettingZoo lets agents be any hashable; observations come in types other than their space's; legal actions
stand in the observation or in `infos`; actions may count from another number than 0. Whatever meets an
environment (games, victims in somebody's loop, wrappers) uses these functions: nothing behind has to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from enum import Enum
from functools import cache
from math import prod
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray

ACTION_MASK = "action_mask"
"""PettingZoo's and RLlib's name of the legal actions, in observations and in infos."""

STATE = "state"
"""The key under which modules find what a centralised critic reads beside an agent's observation."""

TO_FLOAT = "gymnasium.wrappers.DtypeObservation(env, np.float32) or supersuit.dtype_v0(env, np.float32)"

Check = Callable[[Any], Any]
"""Takes an observation, returns it in the type of its space, or raises `ValueError` with the reason."""


class EnvironmentFault(RuntimeError):  # noqa: N818 - it is the environment that is at fault, not the call
    """An environment broke its own contract; the message names it, the agent and the step."""


def agent_name(agent: Hashable) -> str:
    """The name of an agent in options, files and results: `3` is "3", `("red", 3)` is "red_3", RED is "RED".

    Raises:
        ValueError: an object whose text has its address in memory: another process would give another name.
    """
    if isinstance(agent, str):
        return str.__str__(agent)
    if isinstance(agent, Enum):
        return agent.name
    if isinstance(agent, tuple):
        return "_".join(map(agent_name, agent))
    text = str(agent)
    if re.search(r" at 0x[0-9a-f]+", text):
        raise ValueError(
            f"expected agents that say who they are, got {text}; give {type(agent).__name__} a __str__, or "
            "use strings, numbers, tuples or enums"
        )
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def agent_names(agents: Iterable[Hashable]) -> tuple[str, ...]:
    """The names of agents; one string is one agent."""
    return tuple(map(agent_name, [agents] if isinstance(agents, str) else agents))


def named(by_agent: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping from agents with their names as keys."""
    return {agent_name(agent): value for agent, value in by_agent.items()}


def number(value: Any) -> float:
    """One number of any type: a scalar, an array or a list of one element.

    Raises:
        ValueError, TypeError: something else.
    """
    if type(value) in (float, int, bool):
        return value
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"expected one number, got {array.size}")
    return float(array.item())


def as_array(value: Any, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A value as an array of a shape and a type: no number changes, but for the precision of floats.

    Raises:
        ValueError: another shape (one number fits every shape of one), or numbers that would change.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"is no array ({error})") from None
    array = given.astype(dtype, copy=False) if given.dtype.kind in "biuf" else None
    if array is None or (array.dtype.kind != "f" and not np.array_equal(array, given)):
        raise ValueError(f"has dtype {given.dtype}, its space says {np.dtype(dtype)}")
    if array.shape != shape:
        if not array.size == prod(shape) == 1:
            raise ValueError(f"has shape {array.shape}, its space says {shape}")
        array = array.reshape(shape)
    return array


def observation_check(space: spaces.Space[Any]) -> Check:
    """Builds the check of one observation space; it runs for every agent at every step.

    A NaN that enters here would come out as a NaN loss thousands of steps later, without a name. Arrays get
    the dtype and the shape of their space (`as_array`) and must be finite. Dict and Tuple spaces are checked
    leaf by leaf, and what they contain beyond the space is dropped. All but Boxes are asked whether they
    contain the value.

    Args:
        space: The space that the environment declared.

    Returns:
        A function from an observation to the same observation, which raises `ValueError` otherwise.
    """
    if isinstance(space, spaces.Dict):
        checks = {key: observation_check(part) for key, part in space.spaces.items()}
        return lambda obs: {key: _checked_part(obs, key, check) for key, check in checks.items()}
    if isinstance(space, spaces.Tuple):
        return _tuple_check(tuple(map(observation_check, space.spaces)))
    return _box_check(space) if isinstance(space, spaces.Box) else _member_check(space)


def _box_check(space: spaces.Box) -> Check:
    shape, dtype = space.shape, np.dtype(space.dtype)
    zeros = _zeros(shape, dtype) if dtype.kind == "f" else None

    def check(obs: Any) -> Any:
        if type(obs) is not np.ndarray or obs.dtype != dtype or obs.shape != shape:
            obs = as_array(obs, shape, dtype)
        # 0 · NaN and 0 · ∞ are NaN: one product finds what is not finite in a fifth of the time.
        if zeros is not None and np.vdot(obs, zeros) != 0:
            raise ValueError(f"is not finite at {_where(~np.isfinite(obs))}")
        return obs

    return check


@cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Shared by the checks of all agents and copies."""
    return np.zeros(shape, dtype)


def _where(bad: NDArray[np.bool_]) -> str:
    """The first few bad entries, as indices that a person can look up."""
    found = [int(i[0]) if len(i) == 1 else tuple(map(int, i)) for i in np.argwhere(bad)]
    return f"{found[:4]}" + (f" and {len(found) - 4} more" if found[4:] else "")


def _checked_part(obs: Any, key: str, check: Check) -> Any:
    try:
        value = obs[key]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"lacks the key {key!r}") from None
    try:
        return check(value)
    except ValueError as reason:
        raise ValueError(f"[{key!r}] {reason}") from None


def _tuple_check(parts: tuple[Check, ...]) -> Check:
    def check(obs: Any) -> Any:
        if len(obs) != len(parts):
            raise ValueError(f"has {len(obs)} parts, its space says {len(parts)}")
        return tuple(part(value) for part, value in zip(parts, obs, strict=True))

    return check


def _member_check(space: spaces.Space[Any]) -> Check:
    def check(obs: Any) -> Any:
        given = obs
        if space.shape is not None and space.dtype is not None and not space.contains(obs):
            obs = as_array(obs, space.shape, space.dtype)[()]
        if not space.contains(obs):
            raise ValueError(f"is {given!r}, which its space {space} does not contain")
        return obs

    return check


def to_vector(space: spaces.Space[Any]) -> str:
    """The advice to those whose observations are no array."""
    if not space.is_np_flattenable:
        return (
            "make an array of one shape of it: gymnasium.wrappers.TransformObservation, or for PettingZoo "
            "supersuit.observation_lambda_v0"
        )
    return (
        "flatten it: gymnasium.wrappers.FlattenObservation, or for PettingZoo supersuit.observation_lambda_v0"
        "(env, lambda obs, space: flatten(space, obs), flatten_space), with the functions of gymnasium.spaces"
    )


def own_key(parts: Collection[Any]) -> Any:
    """The key of the array in a Dict observation, whatever its name; the others are the mask and a state.

    Raises:
        ValueError: there are several.
    """
    others = [key for key in parts if key != ACTION_MASK]
    if len(others) > 1:
        others = [key for key in others if key != STATE]
    if len(others) != 1:
        keys = ", ".join(map(str, parts))
        raise ValueError(
            f"expected one array, or a Dict of one and its {ACTION_MASK}, got a Dict of {keys}; "
            f"flatten the others into one array with a wrapper, and call the legal actions {ACTION_MASK}"
        )
    return others[0]


def split(obs: Any) -> tuple[Any, Any]:
    """An observation (or its space) without its action mask, and the mask; None where it has none.

    Raises:
        ValueError: a Dict of several arrays.
    """
    return (obs[own_key(obs)], obs.get(ACTION_MASK)) if isinstance(obs, Mapping) else (obs, None)


def joined(obs: Any, mask: Any, *, key: str = "observation") -> Any:
    """An observation and its mask as a Dict observation: the opposite of `split`."""
    return {**obs, ACTION_MASK: mask} if isinstance(obs, Mapping) else {key: obs, ACTION_MASK: mask}


def joined_space(space: spaces.Space[Any], choices: int, *, key: str = "observation") -> spaces.Dict:
    """The space of `joined` for so many choices."""
    return spaces.Dict(joined(space, spaces.Box(0, 1, (choices,), np.int8), key=key))


def choices(space: spaces.Space[Any]) -> int | None:
    """The number of actions that a mask says something about; None where actions have no masks."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, spaces.MultiDiscrete) else None


def legal_actions(mask: Any, count: int) -> NDArray[np.int8]:
    """A mask as an array `[n]` of 0 and 1; the masks of several actions side by side.

    Args:
        mask: numbers or truth values; of several actions one after the other, or a tuple as Gymnasium has it.
        count: n.

    Raises:
        ValueError: of another length.
    """
    parts = mask if isinstance(mask, tuple | list) else [mask]
    flat = np.concatenate([np.ravel(np.asarray(part)) for part in parts])
    if len(flat) != count:
        raise ValueError(f"has {len(flat)} entries for {count} actions")
    return (flat != 0).astype(np.int8)


def single_precision(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space with float32 in place of float16, which the layers of a network do not take."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: single_precision(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box) and space.dtype == np.float16:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return space


def zero_based(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space of the same actions counted from 0, as distributions and networks count them.

    Actions of n bits are n choices between 0 and 1.
    """
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return spaces.Discrete(space.n)
    if isinstance(space, spaces.MultiDiscrete) and space.start.any():
        return spaces.MultiDiscrete(space.nvec, dtype=space.dtype)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return spaces.MultiDiscrete([2] * space.shape[0], dtype=np.int8)
    return space


def as_action(action: Any, space: spaces.Space[Any]) -> Any:
    """An action that counts from 0 as the environment counts it, in the type of its space."""
    if isinstance(space, spaces.Discrete):
        return int(action) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return (np.asarray(action) + space.start).astype(space.dtype)
    return np.array(action, space.dtype) if isinstance(space, spaces.Box | spaces.MultiBinary) else action
