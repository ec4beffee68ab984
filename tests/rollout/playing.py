"""Games played at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep


def act(game: Game, turn: GameStep, rng: np.random.Generator) -> dict[str, Any]:
    """A random legal action for everybody who must act."""
    actions: dict[str, Any] = {}
    for agent in turn.acting:
        space, obs = game.action_spaces[agent], turn.obs[agent]
        if isinstance(space, spaces.Discrete):
            mask = obs["action_mask"] if isinstance(obs, dict) else np.ones(space.n)
            actions[agent] = int(rng.choice(np.flatnonzero(mask)))
        else:
            assert isinstance(space, spaces.Box)
            actions[agent] = rng.uniform(space.low, space.high).astype(space.dtype)
    return actions


def play(game: Game, seed: int) -> list[GameStep]:
    """All turns of an episode."""
    rng = np.random.default_rng(seed)
    turns = [game.reset(seed=seed)]
    while not turns[-1].over:
        turns.append(game.step(act(game, turns[-1], rng)))
    return turns
