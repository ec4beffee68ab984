from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from marl_aajr.rllib.internals.runners import OrderedEpisode
from marl_aajr.rllib.sampling.episode_metrics import RETURNS_KEY, EpisodeReturns

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


def test_returns_are_summed_per_team_and_lengths_over_the_pieces(episode: OrderedEpisode) -> None:
    runner = SimpleNamespace(episode_returns=[{}, {"agent_0": 1.0, "agent_1": 2.0, "agent_2": 4.0}])
    metrics = MetricsLogger(root=True)
    record = EpisodeReturns({"agent_0": "even", "agent_1": "odd", "agent_2": "even", "agent_3": "idle"})
    for _ in range(2):
        record(
            episode=episode,
            prev_episode_chunks=[episode, episode],
            env_runner=runner,
            env_index=1,
            metrics_logger=metrics,
        )
    logged = metrics.reduce()[RETURNS_KEY]
    assert (logged["episodes"], logged["length"]) == (2, 18)
    assert logged["returns"] == {"even": 10.0, "odd": 4.0, "idle": 0.0}
