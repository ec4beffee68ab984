"""Episodes begin as in mpe2: the same distribution of what is seen first."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from marl_aajr.envs import NAMES
from scipy import stats

from tests.envs.mirror import make_mpe2, mpe2_observations

THEIRS, OURS = 800, 4000
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in NAMES if name.startswith("simple")],
    ("simple_adversary_v3", {"N": 5}),
]


def mpe2_begins(name: str, options: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    env = make_mpe2(name, options)
    raw, generator = env.unwrapped, np.random.default_rng(0)
    seen: dict[str, list[np.ndarray[Any, Any]]] = {agent: [] for agent in env.possible_agents}
    for _ in range(THEIRS):
        raw.scenario.reset_world(raw.world, generator)
        for agent, obs in mpe2_observations(env).items():
            seen[agent].append(obs)
    return {agent: np.stack(rows) for agent, rows in seen.items()}


@pytest.mark.parametrize("name", [name for name, options in VARIANTS if not options])
def test_bodies_begin_in_the_squares_of_mpe2(name: str) -> None:
    """What no test of distributions with 800 samples would see: 0.97 in place of 1."""
    batch = importlib.import_module(f"marl_aajr.envs.{name}").batched_env(OURS)
    batch.reset(seed=0)
    agents = len(batch.possible_agents)
    bodies = len(batch.world.layout.bodies)
    reach = 0.9 if name in ("simple_tag_v3", "simple_world_comm_v3") else 1.0
    for places, half in ((slice(0, agents), 1.0), (slice(agents, bodies), reach)):
        found = batch.world.position[:, places].flatten(1)
        assert 0.998 * half < float(found.max()) <= half
        assert -half <= float(found.min()) < -0.998 * half


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{o}" for n, o in VARIANTS])
def test_first_observations_have_the_distribution_of_mpe2(name: str, options: dict[str, Any]) -> None:
    ours = importlib.import_module(f"marl_aajr.envs.{name}").batched_env(OURS, **options).reset(seed=0)
    for agent, theirs in mpe2_begins(name, options).items():
        mine = ours[agent].double().numpy()
        for column, (a, b) in enumerate(zip(mine.T.round(6), theirs.T.round(6), strict=True)):
            assert stats.ks_2samp(a, b).pvalue > 1e-4, f"feature {column} of {agent}"
        # Goals, places and colors hang together as they do there.
        np.testing.assert_allclose(np.cov(mine.T), np.cov(theirs.T), atol=0.11, err_msg=agent)
