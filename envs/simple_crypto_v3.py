"""Alice tells Bob a bit that Eve must not learn: `mpe2.simple_crypto_v3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .particle_batch import ParticleBatch
from .particles import Body, Index, Layout, RowIndex, World, WorldState, landmark
from .scenario import ADVERSARIES, GOOD, Scenario, write_colors
from .single_copy import factories

_EVE, _BOB, _ALICE = 0, 1, 2
_CODES = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class SimpleCrypto(Scenario):
    """An error is the squared distance of what is said to the code of the bit, and 0 for silence.

    Paid to Alice and Bob: error of Eve − error of Bob. To Eve: − her error. Alice sees the bit and a key,
    Bob the key and Alice's message, Eve the message. Nobody moves.
    """

    name: ClassVar[str] = "simple_crypto_v3"
    choices: ClassVar[tuple[int, ...]] = (2, 2)

    def layout(self) -> Layout:
        def speaker(name: str, team: str) -> Body:
            color = (0.75, 0.25, 0.25) if team == ADVERSARIES else (0.25, 0.25, 0.25)
            return Body(name, movable=False, speaks=True, team=team, color=color)

        return Layout(
            (speaker("eve_0", ADVERSARIES), speaker("bob_0", GOOD), speaker("alice_0", GOOD)),
            tuple(landmark(f"landmark {i}", color=code[:3]) for i, code in enumerate(_CODES)),
            message_size=4,
            extras={"bit": (4,), "key": (4,)},
        )

    def begin(self, fresh: WorldState, picks: Sequence[Tensor]) -> None:
        write_colors(fresh.extra["bit"], _CODES, picks[0])
        write_colors(fresh.extra["key"], _CODES, picks[1])

    def observation(self, rows: RowIndex, agent: int) -> dict[str, Index]:
        known = {"bit": rows.extra["bit"], "key": rows.extra["key"], "messages": rows.message(_ALICE)}
        seen = {_EVE: ("messages",), _BOB: ("key", "messages"), _ALICE: ("bit", "key")}
        return {channel: known[channel] for channel in seen[agent]}

    def reward(self, world: World) -> Tensor:
        said = world.message
        error = (said - world.extra["bit"][:, None]).square().sum(0) * (said != 0).any(0)
        eve, good = -error[_EVE], error[_EVE] - error[_BOB]
        return torch.stack([eve, good, good])

    def benchmark(self, world: World) -> dict[str, tuple[Tensor, ...]]:
        """The agent's message and the code of the bit."""
        code = world.extra["bit"]
        return {agent.name: (world.message[:, i], code) for i, agent in enumerate(world.layout.agents)}


batched_env, parallel_env = factories(SimpleCrypto, ParticleBatch)
