"""Connectors in front of an attack on episodes: what it follows, and what is refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import (
    AddObservationsFromEpisodesToBatch,
    FlattenObservations,
    WriteObservationsToEpisodes,
)
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.env_to_module.observation_preprocessor import SingleAgentObservationPreprocessor

from marl_aajr import robustify
from marl_aajr.rllib.plugin.attacked_episodes import complaint
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.env_runs import Masked
from tests.rllib.recorder import Recorder, moved, runner_of
from tests.rllib.test_attacked_episodes import several, single

EPSILON = 0.1
ATTACK = RolloutAttack(epsilon=EPSILON)


class Pictures(gym.Env[Any, Any]):
    """Pictures of one channel, as RLlib stacks them."""

    observation_space = gym.spaces.Box(-1, 1, (4, 4, 1))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, _: Any = None) -> None:
        pass

    def reset(self, **_: Any) -> Any:
        return np.zeros((4, 4, 1), np.float32), {}

    def step(self, action: int) -> Any:
        return np.zeros((4, 4, 1), np.float32), 1.0, False, False, {}


class IntoBatch(ConnectorV2):
    """A piece of somebody's own that puts observations into the batch, after RLlib's own had it."""

    def __call__(self, *, batch: Any, episodes: Any, **_: Any) -> Any:
        for one in self.single_agent_episode_iterator(episodes):
            self.add_batch_item(batch, "obs", one.get_observations(-1), single_agent_episode=one)
        return batch


class Halves(SingleAgentObservationPreprocessor):
    """Leaves out half of the numbers, as its space says."""

    def recompute_output_observation_space(self, input_observation_space: Any, _: Any) -> Any:
        return gym.spaces.Box(input_observation_space.low[:2], input_observation_space.high[:2])

    def preprocess(self, observation: Any, episode: Any) -> Any:
        return observation[:2]


class Doubled(ConnectorV2):
    """Says that it doubles the numbers, as a piece that stacks them in the batch later would."""

    def recompute_output_observation_space(self, input_observation_space: Any, _: Any) -> Any:
        low, high = input_observation_space.low, input_observation_space.high
        return gym.spaces.Box(np.tile(low, 2), np.tile(high, 2))

    def __call__(self, *, batch: Any, **_: Any) -> Any:
        return batch


def built(configured: Any, *make: Any) -> Any:
    configured.env_runners(env_to_module_connector=lambda *_: [piece() for piece in make])
    return runner_of(robustify(configured, None, rollouts=ATTACK))


@pytest.mark.parametrize("configure", [single, several])
def test_pieces_that_batch_observations_are_refused_before_anything_is_played(configure: Any) -> None:
    """RLlib's own piece leaves that batch as it is: agents would act on the truth, and learn from the lie."""
    subject = built(configure(), AddObservationsFromEpisodesToBatch, WriteObservationsToEpisodes)
    assert "got AddObservationsFromEpisodesToBatch, which puts them into the batch" in complaint(subject)


def test_stacked_frames_are_refused_before_anything_is_played() -> None:
    pictures = single(conv_filters=[[4, 2, 2]]).environment(Pictures)
    subject = built(pictures, lambda: FrameStackingEnvToModule(num_frames=4))
    assert "got FrameStacking, which puts them into the batch, where no attack reaches" in complaint(subject)


@pytest.mark.parametrize("configure", [single, several])
def test_unknown_pieces_that_do_so_are_refused_in_the_first_step(configure: Any) -> None:
    subject = built(configure(), IntoBatch)
    assert complaint(subject) == ""
    with pytest.raises(ValueError, match="got them in the batch already, where no attack reaches them"):
        subject.sample(num_timesteps=4)
    assert subject.sample(num_timesteps=4, explore=False), "they are no matter where nobody is attacked"


def test_statistics_of_other_numbers_than_modules_see_are_refused() -> None:
    subject = built(single().environment(Masked), ObservationNormalizer, FlattenObservations)
    assert "expected FlattenObservations in front of ObservationNormalizer" in complaint(subject)
    for other in (
        built(single().environment(Masked), FlattenObservations, ObservationNormalizer),
        built(single(), ObservationNormalizer, FlattenObservations),
    ):
        assert complaint(other) == ""
        assert moved(other, Recorder(other)).max() > 0


def test_rows_that_a_module_does_not_read_are_refused() -> None:
    subject = built(single(), Halves)
    assert moved(subject, Recorder(subject)).max() > 0
    subject = built(single(), Doubled)
    with pytest.raises(ValueError, match="of 8 numbers, as the module reads them, got 4"):
        subject.sample(num_timesteps=4)
