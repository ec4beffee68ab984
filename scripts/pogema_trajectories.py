"""Plays the package `pogema` and writes down what happened, for the tests of `pogema_v0`; or checks the file.

The package runs beside other versions than this project does, so this is for an environment of its own:

    scripts/check_environments pogema                  installs the package there, and checks
    build/check_environments/bin/python scripts/pogema_trajectories.py [--check]

Agents go towards their goals, or at random, through the package's PettingZoo interface. The file has a few
arrays for each case, named `case/array`, of episodes E that were played to the end of the longest T:

    obstacles [E, H, W]; actions [T, E, A]; places and goals [T + 1, E, A] (cells numbered by rows);
    seen, rewards, terminated, truncated [T, E, A]: what agents were told (`seen`: whether they were);
    observations: bits of [T + 1, E, A, 3, 2 r + 1, 2 r + 1], 0 where `seen` is not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from wrapped_environments import pogema_package

FILE = Path(__file__).resolve().parent.parent / "tests" / "envs" / "pogema_trajectories.npz"
EPISODES = 3
CASES: list[dict[str, Any]] = [
    *[
        {"on_target": on_target, "collision_system": collisions, "num_agents": 4}
        for on_target in ("finish", "nothing", "restart")
        for collisions in ("priority", "block_both", "soft")
    ],
    *[  # crowds
        {"collision_system": collisions, "num_agents": 7, "size": 4, "density": 0.1, "obs_radius": 2}
        for collisions in ("priority", "block_both", "soft")
    ],
    {"on_target": "restart", "collision_system": "soft", "num_agents": 8, "size": 4, "density": 0.0},
    {"on_target": "nothing", "num_agents": 2, "size": 3, "density": 0.1, "obs_radius": 1},
    {"on_target": "nothing", "num_agents": 3, "size": 3, "density": 0.1, "max_episode_steps": 6},
    {"num_agents": 1, "size": 2, "density": 0.2, "obs_radius": 1, "max_episode_steps": 3},
    {"num_agents": 4, "size": 4, "density": 0.1, "obs_radius": 1, "max_episode_steps": 3},
    {"num_agents": 12, "size": 16, "density": 0.2, "obs_radius": 3},
]
_MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"usage: {Path(__file__).name} [--check]")
    written = {}
    for number, case in enumerate(CASES):
        options = {"max_episode_steps": 32, **case}
        episodes = [play(options, seed=100 * number + e) for e in range(EPISODES)]
        name = json.dumps(options)
        written |= {f"{name}/{part}": stacked([e[part] for e in episodes], part) for part in episodes[0]}
    if not sys.argv[1:]:
        np.savez_compressed(FILE, **written)
        print(f"{len(CASES)} cases of pogema are in {FILE.name} ({FILE.stat().st_size // 1024} KiB)")
        return 0
    with np.load(FILE) as kept:
        others = [n for n in written.keys() | set(kept) if not np.array_equal(kept.get(n), written.get(n))]
    print(f"pogema plays as in {FILE.name}" if not others else f"pogema plays otherwise: {sorted(others)}")
    return len(others)


def play(options: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """One episode, as the file has it but for E."""
    package, generator = pogema_package(), np.random.default_rng(seed)
    env = package.pogema_v0(package.GridConfig(integration="PettingZoo", seed=seed, **options))
    observations, _ = env.reset()
    grid, players = env.pogema.grid, env.possible_agents
    obstacles = grid.get_obstacles(ignore_borders=True)
    told = {name: [] for name in ("actions", "seen", "rewards", "terminated", "truncated")}
    places, goals, windows = [cells(grid, "agents")], [cells(grid, "targets")], [dense(observations, players)]
    while env.agents:
        way = np.subtract(grid.get_targets_xy(), grid.get_agents_xy())
        actions = [choose(generator, way[i]) for i in range(len(players))]
        acting = list(env.agents)
        observations, *outcome, _ = env.step({agent: actions[players.index(agent)] for agent in acting})
        told["actions"].append(actions)
        told["seen"].append([agent in acting for agent in players])
        for name, given in zip(("rewards", "terminated", "truncated"), outcome, strict=True):
            told[name].append([float(given.get(agent, 0)) for agent in players])
        places.append(cells(grid, "agents"))
        goals.append(cells(grid, "targets"))
        windows.append(dense(observations, players))
    played = {"obstacles": obstacles, "places": places, "goals": goals, "observations": windows, **told}
    return {name: np.array(values).astype(np.uint8) for name, values in played.items()}


def choose(generator: np.random.Generator, way: np.ndarray[Any, Any]) -> int:
    """An action: mostly one that brings the goal nearer."""
    nearer = np.flatnonzero((_MOVES * np.sign(way)).sum(1) > 0)
    towards = len(nearer) and generator.random() < 0.7
    return int(generator.choice(nearer) if towards else generator.integers(5))


def cells(grid: Any, of: str) -> np.ndarray[Any, Any]:
    return np.array(getattr(grid, f"get_{of}_xy")(ignore_borders=True)) @ [grid.config.width, 1]


def dense(observations: dict[str, Any], players: list[str]) -> np.ndarray[Any, Any]:
    blank = np.zeros_like(next(iter(observations.values())))
    return np.stack([observations.get(player, blank) for player in players])


def stacked(episodes: list[np.ndarray[Any, Any]], part: str) -> np.ndarray[Any, Any]:
    """Episodes `[T, E, ...]`, shorter ones filled up with zeros."""
    if part == "obstacles":
        return np.stack(episodes)
    longest = max(map(len, episodes))
    filled = [np.concatenate([e, np.zeros((longest - len(e), *e.shape[1:]), e.dtype)]) for e in episodes]
    together = np.stack(filled, 1)
    return np.packbits(together) if part == "observations" else together


if __name__ == "__main__":
    sys.exit(main())
