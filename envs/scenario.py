"""What a particle environment adds to the world: who is in it, what they see, what they are paid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .checks import whole
from .layout import Body, Index, Layout, Rows, State
from .particles import World

ADVERSARIES, GOOD = "adversary", "good"


@dataclass(frozen=True, kw_only=True)
class Scenario(ABC):
    """A particle environment and its options.

    Attributes:
        max_cycles: Steps after which an episode is truncated.
        continuous_actions: Throttles and messages in [0, 1] in place of a choice.
        dynamic_rescaling: Draw discs in the scale of the picture, not at a fixed size.
        benchmark_data: Report the quantities of the original benchmark in `infos`, by agent as
            `{"benchmark_data": tuple}`. One dict for each copy: slow for many.

    Raises:
        ValueError: If an option is out of its range.
    """

    name: ClassVar[str]
    choices: ClassVar[tuple[int, ...]] = ()
    """Numbers of alternatives of the random choices that begin an episode."""

    max_cycles: int = 25
    continuous_actions: bool = False
    dynamic_rescaling: bool = True
    benchmark_data: bool = False

    def __post_init__(self) -> None:
        whole("max_cycles", self.max_cycles)

    @abstractmethod
    def layout(self) -> Layout:
        """Who is in the world."""

    @abstractmethod
    def observation(self, rows: Rows, agent: int) -> Index:
        """Which rows an agent sees, in order."""

    @abstractmethod
    def reward(self, world: World) -> Tensor:
        """Rewards `[A, E]` after a step."""

    @property
    def draws(self) -> tuple[int, ...]:
        """As `choices`, where the options matter."""
        return self.choices

    @property
    def ends_early(self) -> bool:
        """Whether success ends an episode."""
        return False

    @property
    def stages(self) -> int:
        """How many stages the curriculum has."""
        return 1

    def begin(self, fresh: State, picks: Sequence[Tensor]) -> None:
        """Completes the initial states, in which the bodies have places and nothing else is set.

        Args:
            fresh: The initial states.
            picks: `[E]` int64 for each of `draws`, uniform in [0, n).
        """
        return

    def update(self, world: World) -> None:
        """Writes the extra rows that change with every step."""
        return

    def success(self, world: World) -> Tensor:
        """`[E]` bool: episodes that reached their goal; asked if `ends_early`."""
        raise NotImplementedError

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """By agent, tensors `[..., E]`: what the original benchmark reports."""
        return {}


def two_sides(adversaries: int, good: int, *, adversary: Body, agent: Body) -> tuple[Body, ...]:
    """`adversary_0` and so on, then `agent_0` and so on, made like the two given ones."""
    return numbered(adversary, adversaries, team=ADVERSARIES) + numbered(agent, good, team=GOOD)


def numbered(like: Body, count: int, *, team: str | None = None) -> tuple[Body, ...]:
    """`count` bodies like the given one, `name_0`, `name_1` and so on."""
    return tuple(replace(like, name=f"{like.name}_{i}", team=team or like.team) for i in range(count))


def mark(fresh: State, marker: int, pick: Tensor) -> None:
    """Puts a marker on the picked landmark `[E]` of each copy."""
    layout = fresh.layout
    agents, bodies = len(layout.agents), len(layout.bodies)
    places = fresh.position[:, agents:bodies]
    fresh.position[:, bodies + marker] = places.gather(1, pick.expand(2, 1, -1))[:, 0]


def write_colors(target: Tensor, colors: Sequence[Sequence[float]], pick: Tensor) -> None:
    """Writes the picked color (or code) of each copy into rows `[n, E]`."""
    table = target.new_tensor([list(color) for color in colors]).t()
    target.copy_(table.index_select(1, pick))
