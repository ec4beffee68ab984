"""Channels: what the numbers of an observation are about, such as `position`, `others` or `messages`.

An environment says of which features each channel of an agent consists. Whatever perturbs may name some,
`channels=("messages",)`; before anybody is perturbed, the names become the mask of the agent's features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate, chain, pairwise
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from gymnasium import spaces

from marl_aajr.core.checks import one_of, whole
from marl_aajr.core.environment_values import agent_name
from marl_aajr.core.flat_observations import FlatBox, own_part, parts
from marl_aajr.core.words import Words

CHANNELS = "env.channels"
"""The setting; beside the arguments of an environment, the key that it stands under."""

EACH = "each"
"""In the place of a channel's name: an attack on every channel by itself."""

_FORM = "{messages: [3, 4], others: '5:9'}, or the same for each agent: {agent_*: {messages: [3, 4]}}"


@dataclass(frozen=True)
class Channel:
    """Some features of an observation.

    Attributes:
        features: their places in the observation as a vector.
        choices: n > 0, where the features are choices one behind the other, each one-hot of n (or all zero,
            where nothing was chosen); 0: they are numbers.
        words: where the features are tokens, what these stand for.
    """

    features: tuple[int, ...]
    choices: int = 0
    words: Words | None = None

    def __post_init__(self) -> None:
        whole("choices", self.choices, least=0)
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f"expected features of a channel, each once, got {list(self.features)}")
        if self.choices and len(self.features) % self.choices:
            raise ValueError(
                f"expected features in groups of choices={self.choices}, got {len(self.features)} features"
            )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The features of each choice; none where they are numbers."""
        n, at = self.choices, range(0, len(self.features), self.choices or 1)
        return tuple(self.features[i : i + n] for i in at) if n else ()


Channels = Mapping[str, Channel]
"""The channels of one agent by name."""

NO_CHANNELS: Mapping[str, Channels] = MappingProxyType({})
"""Of an environment that says nothing."""


class _HeldToChannels(Protocol):
    """A frozen dataclass with the settings `channels` and `mask`."""

    @property
    def channels(self) -> tuple[str, ...] | None: ...

    @property
    def mask(self) -> Sequence[bool] | None: ...


Held = TypeVar("Held", bound=_HeldToChannels)


def held(value: Held, known: Channels, width: int) -> Held | None:
    """The same with a mask in the place of the channels that it names; None: the agent has none of them.

    Args:
        value: any frozen dataclass with the settings `channels` and `mask`; a mask that it has holds, too.
        known: the channels of the agent.
        width: d, the number of the agent's features.
    """
    if value.channels is None:
        return value
    chosen = set(chain.from_iterable(known[name].features for name in value.channels if name in known))
    if value.mask is not None and len(value.mask) != width:
        raise ValueError(f"expected {width} features in mask, got {len(value.mask)}; or name channels alone")
    mask = tuple(i in chosen and (value.mask is None or bool(value.mask[i])) for i in range(width))
    return replace(value, channels=None, mask=mask) if any(mask) else None  # type: ignore[type-var]


def held_together(value: Held, members: Mapping[str, Channels], width: int) -> Held | None:
    """The same as `held` for agents whose decisions are one batch.

    Raises:
        ValueError: the channels are other features of some of the agents, whose channels `members` are.
    """
    found = {agent: held(value, known, width) for agent, known in members.items()}
    first, *others = found
    if different := [agent for agent in others if found[agent] != found[first]]:
        raise ValueError(
            f"expected {', '.join(value.channels or ())} to be the same features of {first!r} and "
            f"{different[0]!r}, who have one network, got others; give them networks of their own "
            "(policies: independent)"
        )
    return found[first]


def who_observes(
    names: Collection[str] | None, known: Mapping[str, Channels], agents: Iterable[str]
) -> tuple[str, ...]:
    """The agents that observe some of the channels of these names; None: all of them."""
    return tuple(a for a in agents if names is None or not known.get(a, {}).keys().isdisjoint(names))


def each_channel(known: Mapping[str, Channels], agents: Iterable[str]) -> tuple[str, ...]:
    """The names of all channels that some of these agents observe, in their order."""
    return tuple(dict.fromkeys(name for agent in agents for name in known.get(agent, {})))


def check_channel_names(channels: Any) -> None:
    """Raise `ValueError` unless these are names of channels, or None."""
    named = isinstance(channels, tuple) and all(isinstance(name, str) for name in channels)
    if channels is not None and not (named and channels):
        raise ValueError(f"expected channels as a list of names such as [messages], got {channels!r}")


def check_channels(
    names: Collection[str] | None, known: Mapping[str, Channels], agents: Collection[str], *, env: str
) -> None:
    """Raise `ValueError` where some of these agents have not all of the channels between them."""
    there = each_channel(known, agents)
    for name in names or ():
        if not there:
            raise ValueError(
                f"expected an environment that says what its observations consist of for channel {name!r}, "
                f"got {env}, which does not; say it: {CHANNELS}: {_FORM}"
            )
        one_of(f"a channel of {', '.join(agents)} in {env}", name, there)


def in_order(sizes: Mapping[str, int], **choices: int) -> dict[str, Channel]:
    """Channels of so many features, one behind the other; those with `choices` are one-hot of so many."""
    ends = list(accumulate(sizes.values(), initial=0))
    places = zip(sizes, pairwise(ends), strict=True)
    return {n: Channel(tuple(range(*at)), choices.get(n, 0)) for n, at in places if range(*at)}


def channels_in(space: Any) -> dict[str, Channel]:
    """The channels of a nested observation: its parts, by their names; discrete ones are choices."""
    if not isinstance(space, FlatBox):
        space = own_part(space)[0]
        if isinstance(space, spaces.Box):
            return {}
        space = FlatBox(space)
    named = {"/".join(map(str, path)): part for path, part in parts(space.structure)}
    choices = {name: int(part.n) for name, part in named.items() if isinstance(part, spaces.Discrete)}
    return in_order({name: spaces.flatdim(part) for name, part in named.items()}, **choices)


def read_channels(said: Any, widths: Mapping[str, int], *, env: str) -> dict[str, dict[str, Channel]]:
    """The channels of each agent, as people write them.

    Args:
        said: channel -> features, for all agents; or agent -> that, where a pattern such as `red_*` stands
            for many agents. Features are a number, a slice `"3:5"`, a list of both, or
            `{features: ..., choices: 10}` where they are one-hot.
        widths: the number of each agent's features.
        env: the environment, in messages.

    Raises:
        ValueError: something else, or features that an agent has not.
    """
    if not isinstance(said, Mapping) or not said:
        raise ValueError(f"expected {CHANNELS} as {_FORM}; got {said!r}")
    nested = all(isinstance(part, Mapping) and "features" not in part for part in said.values())
    by_agent = {agent_name(agent): each for agent, each in said.items()} if nested else {"*": said}
    if strangers := [key for key in by_agent if not any(fnmatchcase(agent, key) for agent in widths)]:
        raise ValueError(f"expected {CHANNELS} of {', '.join(widths)}, got those of {strangers[0]!r}")
    found: dict[str, dict[str, Channel]] = {}
    for agent, width in widths.items():
        pattern = next((key for key in by_agent if key == agent or fnmatchcase(agent, key)), None)
        each = {} if pattern is None else by_agent[pattern]
        try:
            found[agent] = {str(name): _channel(part, width) for name, part in each.items()}
        except ValueError as error:
            raise ValueError(f"{CHANNELS}, agent {agent!r} of {env}: {error}") from None
    return found


def _channel(said: Any, width: int) -> Channel:
    choices = 0
    if isinstance(said, Mapping):
        if set(said) - {"features", "choices"}:
            raise ValueError(f"expected features and choices of a channel, got {', '.join(map(str, said))}")
        said, choices = said["features"], said.get("choices", 0)
    listed = [said] if isinstance(said, int | str) else said
    if not isinstance(listed, Sequence):
        raise ValueError(f"expected features as numbers and slices such as [3, '5:9'], got {said!r}")
    return Channel(tuple(chain.from_iterable(_features(part, width) for part in listed)), choices)


def _features(said: Any, width: int) -> Sequence[int]:
    try:
        if isinstance(said, str) and ":" in said:
            ends = [int(end) if end.strip() else None for end in said.split(":")]
            chosen = slice(*ends)
            found = range(width)[chosen]
            inside = len(found) > 0 and all(end is None or -width <= end <= width for end in ends[:2])
        else:
            place = int(said)
            found, inside = range(place, place + 1), 0 <= place < width
    except (TypeError, ValueError):
        raise ValueError(
            f"expected features as numbers and slices such as [3, '5:9'], got {said!r}"
        ) from None
    if not inside:
        raise ValueError(f"expected features out of its {width}, 0 to {width - 1}, got {said!r}")
    return found
