"""Environments of other packages that need a wrapper, or a repair, before anybody's framework can play them.

scripts/check_environments plays each by its import path, such as wrapped_environments:pistonball. Packages
are imported where they are used, since nobody has all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def flattened(env: Any) -> Any:
    """Dict, Tuple and integer observations of a PettingZoo environment as one vector of floats."""
    from gymnasium.spaces.utils import flatten, flatten_space
    from supersuit import dtype_v0, observation_lambda_v0

    env = observation_lambda_v0(env, lambda obs, space: flatten(space, obs), flatten_space)
    return dtype_v0(env, np.float32)


def item_gathering() -> Any:
    """MOMAland's rewards are vectors, one number for each objective: the sum of its parts is played here."""
    from momaland.envs.item_gathering import item_gathering
    from momaland.utils.parallel_wrappers import LinearizeReward

    env = item_gathering.parallel_env(num_timesteps=50)
    objectives = env.reward_space(env.possible_agents[0]).shape
    return flattened(LinearizeReward(env, {agent: np.ones(objectives) for agent in env.possible_agents}))


def drone_swarm() -> Any:
    """DSSE's observations are a tuple of the drone's place and the map of probabilities."""
    from DSSE import DroneSwarmSearch

    return flattened(DroneSwarmSearch(drone_amount=2, grid_size=10, timestep_limit=50))


def pistonball() -> Any:
    """Pistonball's observations are pictures: one colour, twelve by twelve, between 0 and 1."""
    import supersuit
    from pettingzoo.butterfly import pistonball_v6

    env = pistonball_v6.parallel_env(n_pistons=5, max_cycles=50)
    env = supersuit.resize_v1(supersuit.color_reduction_v0(env, mode="B"), x_size=12, y_size=12)
    return supersuit.normalize_obs_v0(supersuit.dtype_v0(supersuit.flatten_v0(env), np.float32))


def knights_archers_zombies() -> Any:
    """KAZ needs no wrapper; here those who are out stay and see zeros, as many algorithms need it."""
    import supersuit
    from pettingzoo.butterfly import knights_archers_zombies_v11

    return supersuit.black_death_v3(knights_archers_zombies_v11.parallel_env(max_cycles=100))


def openspiel(game_name: str = "leduc_poker") -> Any:
    """A game of OpenSpiel through Shimmy, which pays the last rewards again when players leave."""
    from shimmy import OpenSpielCompatibilityV0

    class PaidOnce(OpenSpielCompatibilityV0):
        def step(self, action: Any) -> None:
            if self.terminations[self.agent_selection]:
                self.rewards = dict.fromkeys(self.rewards, 0.0)
            super().step(action)

    env = PaidOnce(game_name=game_name)
    env.teams = {player: player for player in env.possible_agents}  # each for itself: one team's sum is 0
    return env


def overcooked() -> Any:
    """CoGrid declares no observation spaces: they are those of the first observations."""
    from cogrid.envs import registry
    from gymnasium.spaces import Box

    env = registry.make("Overcooked-CrampedRoom-V0")
    env.max_steps = 100
    obs, _ = env.reset(seed=0)
    env.observation_spaces = {a: Box(-np.inf, np.inf, seen.shape, seen.dtype) for a, seen in obs.items()}
    return env


def sumo() -> Any:
    """sumo-rl calls PettingZoo's `AgentSelector` by the name that it had before PettingZoo 1.25."""
    import sumo_rl.environment.env as sumo_rl
    from pettingzoo.utils import AgentSelector

    sumo_rl.agent_selector = AgentSelector
    nets = Path(sumo_rl.__file__).parents[1] / "nets" / "2x2grid"
    files = {"net_file": f"{nets}/2x2.net.xml", "route_file": f"{nets}/2x2.rou.xml"}
    return sumo_rl.parallel_env(**files, num_seconds=500, sumo_warnings=False)


def pogema_package() -> Any:
    """The package, repaired: it is written for pydantic 1, and for Gymnasium 0.28, whose wrappers pass on."""
    import gymnasium
    import pydantic
    import pydantic.v1

    def passed_on(wrapper: Any, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(wrapper.env, name)

    gymnasium.Wrapper.__getattr__ = passed_on  # type: ignore[method-assign]
    sys.modules["pydantic"] = pydantic.v1
    try:
        import pogema
    finally:
        sys.modules["pydantic"] = pydantic
    return pogema


def pogema() -> Any:
    """POGEMA needs the repairs above; `pogema_v0` of this project needs nothing."""
    package = pogema_package()
    options = {"integration": "PettingZoo", "num_agents": 3, "size": 8, "max_episode_steps": 50}
    return package.pogema_v0(package.GridConfig(**options))
