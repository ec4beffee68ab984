from __future__ import annotations

import pickle

import numpy as np
import pytest
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from marl_aajr.rllib.returns import RETURNS_KEY, EpisodeReturns
from marl_aajr.rllib.runner import OrderedEpisode

AGENTS = [f"agent_{i}" for i in range(20)]


@pytest.fixture
def episode() -> OrderedEpisode:
    """Three steps of twenty agents; twenty strings are in order of insertion in no set."""
    made = OrderedEpisode()
    obs = {agent: np.zeros(1) for agent in AGENTS}
    made.add_env_reset(observations=obs)
    for _ in range(3):
        made.add_env_step(obs, dict.fromkeys(AGENTS, 0), dict.fromkeys(AGENTS, 1.0))
    return made


def test_agents_come_in_their_order(episode: OrderedEpisode) -> None:
    assert list(episode.agent_ids) == AGENTS
    assert list(episode.get_agents_that_stepped()) == AGENTS


def test_rllibs_own_episode_still_gives_them_as_a_set(episode: OrderedEpisode) -> None:
    """The reason for ours. When this fails, Ray has repaired it."""
    assert isinstance(MultiAgentEpisode.agent_ids.fget(episode), set)
    assert isinstance(MultiAgentEpisode.get_agents_that_stepped(episode), set)


def test_pieces_of_an_episode_keep_the_order(episode: OrderedEpisode) -> None:
    for piece in (episode.cut(), episode[0:2], pickle.loads(pickle.dumps(episode))):
        assert isinstance(piece, OrderedEpisode)
        assert list(piece.agent_ids) == AGENTS


def test_returns_are_added_up_over_the_pieces_of_an_episode_and_per_team(episode: OrderedEpisode) -> None:
    rest = episode.cut()
    rest.add_env_step(
        dict.fromkeys(AGENTS, np.zeros(1)), dict.fromkeys(AGENTS, 0), dict.fromkeys(AGENTS, 10.0)
    )
    metrics = MetricsLogger(root=True)
    teams = {agent: "odd" if i % 2 else "even" for i, agent in enumerate(AGENTS[:6])}
    for _ in range(2):
        EpisodeReturns(teams)(episode=rest, prev_episode_chunks=[episode], metrics_logger=metrics, env=None)
    logged = metrics.reduce()[RETURNS_KEY]
    assert (logged["episodes"], logged["length"]) == (2, 8)
    assert logged["returns"] == {"even": 2 * 39.0, "odd": 2 * 39.0}
