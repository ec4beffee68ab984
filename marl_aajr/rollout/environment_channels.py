"""The channels of an environment's agents, by what it says itself or what is said of it.

An environment says them with an attribute `channels`, in any form of `marl_aajr.core.channels.read_channels`;
whoever uses it, with the setting `env.channels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gymnasium import spaces

from marl_aajr.core.channels import Channel, channels_in, read_channels
from marl_aajr.core.environment_values import agent_name
from marl_aajr.core.flat_observations import own_part
from marl_aajr.rollout.teams import outermost

_TWINS = "marl_aajr.envs"
"""Group of the entry points, and prefix of the names, of our own versions of mpe2's environments."""


def channels_of(
    env: Any,
    observation_spaces: Mapping[str, spaces.Space[Any]],
    *,
    name: str,
    said: Any = None,
) -> dict[str, dict[str, Channel]]:
    """The channels of each agent.

    In this order: `said`; the `channels` of the outermost wrapper that has some; of mpe2's environments what
    our own versions of them say; the parts of a Dict or Tuple observation. What an environment says of
    itself does not count where a wrapper has made observations of another width.

    Args:
        env: A PettingZoo environment.
        observation_spaces: By name of the agent.
        name: The environment's, in messages.
        said: The channels that whoever uses the environment gives.

    Returns:
        By agent, its channels by name; none where nothing is said.

    Raises:
        ValueError: `said`, or what the environment says, cannot be read.
    """
    own = {agent: own_part(space)[0] for agent, space in observation_spaces.items()}
    widths = {agent: _width(space) for agent, space in own.items()}
    if said is not None:
        return read_channels(said, widths, env=name)
    found = outermost(env, "channels") or _of_twin(env.unwrapped)
    if found is None:
        return {agent: channels_in(space) for agent, space in own.items()}
    if not all(_are_channels(each) for each in found.values()):
        return read_channels(found, widths, env=name)
    named = {agent_name(agent): dict(each) for agent, each in found.items()}
    return {agent: _of_width(named.get(agent, {}), width) for agent, width in widths.items()}


def _are_channels(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, Channel) for each in value.values())


def _of_width(channels: dict[str, Channel], width: int) -> dict[str, Channel]:
    """The same, where they are about observations of this width."""
    return channels if sum(len(each.features) for each in channels.values()) == width else {}


def _width(space: Any) -> int:
    parts = space.values() if isinstance(space, Mapping) else [space]
    return sum(map(spaces.flatdim, parts))


def _of_twin(env: Any) -> Any:
    """The channels of our own version of an environment of mpe2, with the same arguments."""
    if not type(env).__module__.startswith("mpe2."):
        return None
    point = _twins().get(f"{_TWINS}.{env.metadata['name']}")
    if point is None:
        return None
    kwargs = {name: value for name, value in env._ezpickle_kwargs.items() if name != "render_mode"}
    return point.load().parallel_env(**kwargs).channels


@cache
def _twins() -> Mapping[str, EntryPoint]:
    # Reading them takes 20 ms, and a run asks six times.
    return {point.name: point for point in entry_points(group=_TWINS)}
