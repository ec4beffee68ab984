"""One sees the goal and speaks, the other listens and goes: `mpe2.simple_speaker_listener_v4`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import Scenario, mark, write_colors
from .single_copy import factories

_SPEAKER, _LISTENER = 0, 1
_COLORS = ((0.65, 0.15, 0.15), (0.15, 0.65, 0.15), (0.15, 0.15, 0.65))
_LANDMARKS, _GOAL = [2, 3, 4], 5


@dataclass(frozen=True, kw_only=True)
class SimpleSpeakerListener(Scenario):
    """Both are paid minus the squared distance of the listener to the goal."""

    name: ClassVar[str] = "simple_speaker_listener_v4"
    choices: ClassVar[tuple[int, ...]] = (3,)

    def layout(self) -> Layout:
        return Layout(
            (Body("speaker_0", size=0.075, movable=False, speaks=True), Body("listener_0", size=0.075)),
            tuple(landmark(f"landmark {i}", size=0.04, color=c) for i, c in enumerate(_COLORS)),
            markers=1,
            message_size=3,
            extras={"goal_color": (3,)},
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        mark(fresh, 0, picks[0])
        write_colors(fresh.extra["goal_color"], _COLORS, picks[0])

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        if agent == _SPEAKER:
            return {"goal": rows.extra["goal_color"]}
        return {
            "velocity": rows.velocity[:, agent],
            "landmarks": rows.relative[:, agent, _LANDMARKS],
            "messages": rows.message(_SPEAKER),
        }

    def reward(self, world: World) -> Tensor:
        return -world.distance[_LISTENER, _GOAL].square().expand(2, -1)

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """The reward."""
        speaker, listener = self.reward(world)
        return {"speaker_0": (speaker,), "listener_0": (listener,)}


batched_env, parallel_env = factories(SimpleSpeakerListener, ParticleBatch)
