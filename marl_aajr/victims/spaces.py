"""Spaces of a victim: as JSON values, and whether an environment has the same.

Box, Discrete and MultiDiscrete are written exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from marl_aajr.victims.victim import Victim


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


class HasAgents(Protocol):
    """Agents and their spaces, as a `BatchedEnv` has them."""

    @property
    def possible_agents(self) -> Sequence[str]: ...

    @property
    def observation_spaces(self) -> Mapping[str, gym.Space[Any]]: ...

    @property
    def action_spaces(self) -> Mapping[str, gym.Space[Any]]: ...


def check_victim(victim: Any, *, what: str = "a victim") -> None:
    """Raise `ValueError` unless it is a `Victim`: a network alone does not say who plays what with it."""
    if not isinstance(victim, Victim):
        raise ValueError(
            f"expected {what}, got a {type(victim).__name__}; make one with Victim.from_policies(network, "
            "env) or Victim.load(folder)"
        )


def check_match(
    victim: Victim, env: HasAgents, *, agents: Sequence[str] | None = None, what: str = "a victim"
) -> None:
    """Raise `ValueError` unless the victim can play these agents of the environment; None: all."""
    check_victim(victim, what=what)
    agents = env.possible_agents if agents is None else agents
    for agent in agents:
        if agent not in victim.module_of:
            raise ValueError(
                f"expected {what} that plays {', '.join(agents)}, got one for "
                f"{', '.join(victim.agents)}; evaluate it on the environment that it was trained on"
            )
        for kind, has, needs in (
            ("observations", victim.observation_spaces[agent], env.observation_spaces[agent]),
            ("actions", victim.action_spaces[agent], env.action_spaces[agent]),
        ):
            if not _fits(has, needs):
                raise ValueError(
                    f"expected {what} for the {kind} {needs} of {agent!r}, got one for {has}; evaluate it "
                    "with the environment arguments that it was trained with"
                )


def _fits(has: gym.Space[Any], needs: gym.Space[Any]) -> bool:
    # Bounds of observations may differ with the arguments; nothing depends on them.
    if isinstance(has, gym.spaces.Box) and isinstance(needs, gym.spaces.Box):
        same_bounds = np.array_equal(has.low, needs.low) and np.array_equal(has.high, needs.high)
        return has.shape == needs.shape and has.dtype == needs.dtype and same_bounds
    return has == needs
