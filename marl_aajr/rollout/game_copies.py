"""Some copies of a PettingZoo environment, played one after the other into arrays.

`marl_aajr.rollout.pettingzoo_batch` makes tensors of the arrays. These may lie in memory that processes share
(`marl_aajr.rollout.game_process`), each of which plays copies of its own: nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_aajr.core.flat_observations import FlatBox, own_part
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CopySpaces:
    """The arrays of one copy; `records` says how they lie in memory.

    Attributes:
        observations: Space of each agent's array.
        actions: Space of each agent's actions.
        masks: Number of the choices that each agent's mask is about; None where it has none.
        state: Space of the global states, if they are arrays.
    """

    observations: Mapping[str, spaces.Space[Any]]
    actions: Mapping[str, spaces.Space[Any]]
    masks: Mapping[str, int | None]
    state: spaces.Box | None

    @property
    def records(self) -> np.dtype[Any]:
        """A record for each copy: E of them are everything that E copies are told and tell in a step."""
        agents = len(self.observations)
        masks = [(agent, np.bool_, (count,)) for agent, count in self.masks.items() if count is not None]
        state = [] if self.state is None else [("final_state", self.state.dtype, self.state.shape)]
        return np.dtype(
            [
                ("actions", _fields(self.actions)),
                ("obs", _fields(self.observations)),
                ("final_obs", _fields(self.observations)),
                ("masks", masks),
                ("rewards", np.float32, (agents,)),
                ("ends", np.bool_, (2, agents)),
                ("active", np.bool_, (agents,)),
                ("over", np.bool_),
                *state,
            ],
            align=True,
        )


def _fields(of_agents: Mapping[str, spaces.Space[Any]]) -> np.dtype[Any]:
    each: list[Any] = [(agent, space.dtype, space.shape) for agent, space in of_agents.items()]
    return np.dtype(each, align=True)


class GameCopies:
    """Copies `first`, `first + 1`, ... of an environment, each in a record of its own.

    Args:
        spec: The environment.
        arrays: Of the copies.
        records: `[E]` with the dtype `arrays.records`: those of these copies.
        first: Index of the first copy among all.
        games: The games, where they are there already.
    """

    acting: list[tuple[str, ...]]

    def __init__(
        self,
        spec: EnvironmentSpec,
        arrays: CopySpaces,
        records: _Array,
        *,
        first: int = 0,
        games: Sequence[Game] = (),
    ) -> None:
        missing = len(records) - len(games)
        self.games = [*games, *(spec.make() for _ in range(missing))]
        for copy, game in enumerate(self.games, first):
            game.copy = copy
        self.first = first
        self.episodes = [0] * len(self.games)
        self._seed = 0
        self._rank = {agent: i for i, agent in enumerate(arrays.observations)}
        self._flat = {a: space for a, space in arrays.observations.items() if isinstance(space, FlatBox)}
        self._listed = {a for a, space in arrays.actions.items() if isinstance(space, spaces.Discrete)}
        part: dict[str, Any] = {name: records[name] for name in arrays.records.names or ()}
        self._actions, self._obs, self._final_obs, self._masks = (
            {agent: part[name][agent] for agent in part[name].dtype.names or ()}
            for name in ("actions", "obs", "final_obs", "masks")
        )
        self._rewards, self._ends, self._active, self._over = (
            part[name] for name in ("rewards", "ends", "active", "over")
        )
        self._final_state = part.get("final_state")
        self._has_finals = False
        self._clear()

    def reset(self, seed: int) -> None:
        """Begin the first episodes; see `marl_aajr.rollout.pettingzoo_batch.PettingZooBatch`."""
        self._seed, self.episodes = seed, [0] * len(self.games)
        self._clear()
        for e in range(len(self.games)):
            self._start(e)

    def step(self, given: Sequence[str], keep_states: bool) -> list[dict[str, Any]]:
        """Play a step with the actions in the records.

        Args:
            given: The agents whose actions are there.
            keep_states: Whether to keep the states that episodes end in.

        Returns:
            The infos of each copy.
        """
        rows = {agent: self._rows(agent) for agent in given}
        acting, infos = self.acting, []
        self._clear()
        for e, game in enumerate(self.games):
            try:
                actions = {agent: rows[agent][e] for agent in acting[e]}
            except KeyError as missing:
                raise ValueError(f"expected actions of {missing}, which is active; add them") from None
            turn = game.step(actions)
            rewards, ends = self._rewards[e], self._ends[e]
            for agent, reward in turn.rewards.items():
                rank = self._rank[agent]
                rewards[rank] = reward
                ends[0, rank] = turn.terminations[agent]
                ends[1, rank] = turn.truncations[agent]
            infos.append(turn.infos)
            self._show(e, turn)
            if turn.over:
                self._over[e] = True
                if keep_states and self._final_state is not None:
                    self._final_state[e] = game.state()
                self._start(e)
        return infos

    def states(self) -> _Array:
        """The global states, `[E, ...]`."""
        return np.stack([game.state() for game in self.games])

    def draw(self, copy: int) -> _Array:
        """See `marl_aajr.rollout.pettingzoo_batch.PettingZooBatch.draw`."""
        game = self.games[copy - self.first]
        picture = game.render()
        if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] >= 3):
            raise ValueError(
                f"expected {game.name} to draw a picture [height, width, 3], got {type(picture).__name__}; "
                f"build it with render_mode='rgb_array' (it has {game.metadata.get('render_modes', [])})"
            )
        return picture[..., :3]

    def get_state(self) -> dict[str, list[Any]]:
        """What is not in the records."""
        return {
            "games": [game.get_state() for game in self.games],
            "episodes": list(self.episodes),
            "acting": list(self.acting),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of all copies."""
        mine = slice(self.first, self.first + len(self.games))
        for game, saved in zip(self.games, state["games"][mine], strict=True):
            game.set_state(saved)
        self._seed = state["seed"]
        self.episodes, self.acting = list(state["episodes"][mine]), list(state["acting"][mine])

    def close(self) -> None:
        """Close the games."""
        for game in self.games:
            game.close()

    def _start(self, e: int) -> None:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self.first + e, self.episodes[e]))
        self.episodes[e] += 1
        # Environments hand seeds to generators that take 31 bits.
        self._show(e, self.games[e].reset(seed=int(sequence.generate_state(1)[0] >> 1)))

    def _show(self, e: int, turn: GameStep) -> None:
        """Write what agents see: those that must act, and for the last time those that have ended."""
        obs, _, terminations, truncations, *_ = turn
        acting, active = [], self._active[e]
        for agent, seen in obs.items():
            own, legal = (seen, None) if type(seen) is np.ndarray else own_part(seen)
            if agent in self._flat:
                own = self._flat[agent].vector(own)
            if terminations[agent] or truncations[agent]:
                self._has_finals = True
                self._final_obs[agent][e] = own
                continue
            acting.append(agent)
            self._obs[agent][e] = own
            active[self._rank[agent]] = True
            if agent in self._masks:
                self._masks[agent][e] = legal
        self.acting[e] = tuple(acting)

    def _clear(self) -> None:
        """Records without anything in them, but for the actions."""
        self.acting = [()] * len(self.games)
        blank = [*self._obs.values(), self._rewards, self._ends, self._active, self._over]
        if self._has_finals:
            blank += self._final_obs.values()
            self._has_finals = False
        for array in blank:
            array[...] = 0
        for mask in self._masks.values():
            mask[...] = True

    def _rows(self, agent: str) -> Any:
        """An action for each copy: Python integers, or arrays."""
        actions = self._actions[agent]
        return actions.tolist() if agent in self._listed else actions.copy()
