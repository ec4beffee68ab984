"""Gymnasium spaces as JSON values: Box, Discrete and MultiDiscrete, exactly."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """A space as a JSON value.

    Raises:
        ValueError: a space of another kind.
    """
    if isinstance(space, gym.spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"space": "Box", "shape": list(space.shape), "dtype": np.dtype(space.dtype).name, **bounds}
    if isinstance(space, gym.spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    raise ValueError(f"expected a Box, Discrete or MultiDiscrete space, got {space}")


def space_from_json(value: dict[str, Any]) -> gym.Space[Any]:
    """The space of a JSON value that `space_to_json` wrote.

    Raises:
        ValueError: a value of another form.
    """
    kind = value.get("space")
    try:
        if kind == "Box":
            dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
            low, high = (_array(value[key], shape, dtype) for key in ("low", "high"))
            return gym.spaces.Box(low, high, dtype=dtype.type)
        if kind == "Discrete":
            return gym.spaces.Discrete(value["n"], start=value["start"])
        if kind == "MultiDiscrete":
            return gym.spaces.MultiDiscrete(np.array(value["nvec"]), start=np.array(value["start"]))
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"expected a {kind} space, got {value} ({error})") from None
    raise ValueError(f"expected a Box, Discrete or MultiDiscrete space, got {value}")


def _bound(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all are equal. JSON has no infinity: those are strings."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0].item())
    return [_number(x) for x in bound.ravel().tolist()]


def _number(x: float) -> float | str:
    return x if np.isfinite(x) else str(x)


def _array(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if isinstance(value, list):
        return np.array([_parsed(x, dtype) for x in value], dtype=dtype).reshape(shape)
    return np.full(shape, _parsed(value, dtype), dtype=dtype)


def _parsed(x: Any, dtype: np.dtype[Any]) -> Any:
    return float(x) if np.issubdtype(dtype, np.floating) else int(x)
