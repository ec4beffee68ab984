from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from marl_aajr.rllib.sampling.observation_filter import CLIP, Moments, ObservationNormalizer
from marl_aajr.victims import ObservationFilter

RNG = np.random.default_rng(0)


def pushed(connector: ObservationNormalizer, agent: str, rows: Any) -> list[Any]:
    """What episodes with these observations hold after the connector has seen them."""
    episodes = [
        SingleAgentEpisode(agent_id=agent, module_id=agent, observations=[row], len_lookback_buffer=0)
        for row in rows
    ]
    connector(batch={}, episodes=episodes)
    return [episode.get_observations(-1) for episode in episodes]


def samples(count: int, *shape: int) -> NDArray[np.float32]:
    return (5 + 2 * RNG.standard_normal((count, *shape))).astype(np.float32)


def test_moments_are_those_of_all_samples() -> None:
    data, moments = samples(100, 3), Moments()
    for part in np.split(data, [1, 2, 40]):
        moments += Moments.of(part)
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean, data.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, data.std(0, ddof=1), rtol=1e-6)


def test_several_runners_together_know_what_one_would() -> None:
    main, runners = ObservationNormalizer(), [ObservationNormalizer() for _ in range(3)]
    everything = []
    for _ in range(4):
        for runner in runners:
            everything.append(samples(50, 2))
            pushed(runner, "a", everything[-1])
        state = main.merge_states([runner.get_state() for runner in runners])
        for connector in (main, *runners):
            connector.set_state(state)
    data = np.concatenate(everything).astype(float)
    for connector in (main, *runners):
        assert connector.total["a"].count == len(data)
        np.testing.assert_allclose(connector.total["a"].mean, data.mean(0), rtol=1e-12)
        np.testing.assert_allclose(connector.total["a"].std, data.std(0, ddof=1), rtol=1e-6)


def test_rllibs_own_filter_still_loses_the_mean() -> None:
    """The reason for ours. When this fails, Ray has repaired it."""

    def stock() -> Any:
        connector = MeanStdFilter(multi_agent=True)
        connector.input_observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-1e9, 1e9, (1,))})
        connector.reset_state()
        return connector

    main, runner = stock(), stock()
    for _ in range(3):
        for row in samples(500, 1):
            runner._filters["a"](row)
        state = main.merge_states([runner.get_state()])
        main.set_state(state)
        runner.set_state(state)
    assert main._filters["a"].running_stats.mean.item() < 2.5  # the data's is 5


def test_observations_are_normalised_as_the_victim_does_it() -> None:
    connector = ObservationNormalizer()
    pushed(connector, "a", samples(500, 3))
    rows = samples(8, 3)
    rows[0] = 1e4
    got = np.stack(pushed(connector, "a", rows))
    moments = connector.total["a"]
    frozen = ObservationFilter(mean=torch.tensor(moments.mean), std=torch.tensor(moments.std), clip=CLIP)
    assert torch.equal(frozen(torch.tensor(rows)), torch.tensor(got))
    assert got.dtype == np.float32
    assert np.abs(got).max() == CLIP


def test_a_frozen_filter_does_not_learn() -> None:
    connector = ObservationNormalizer()
    pushed(connector, "a", samples(50, 1))
    before = connector.get_state()
    connector.frozen = True
    pushed(connector, "a", samples(50, 1))
    assert connector.get_state()["total"]["a"]["count"] == before["total"]["a"]["count"] == 50


def test_modules_with_different_shapes_and_action_masks() -> None:
    connector = ObservationNormalizer()
    mask = np.array([1, 0], dtype=np.int8)
    (got,) = pushed(connector, "b", [{"observation": samples(1, 2, 2)[0], "action_mask": mask}])
    assert got["action_mask"] is mask
    assert np.array_equal(got["observation"], np.zeros((2, 2)))  # one sample: it is its own mean
    state = ObservationNormalizer().merge_states([connector.get_state()])
    assert {module: moments["count"] for module, moments in state["total"].items()} == {"b": 1}
