"""An attack on RLlib's rollouts in configurations that have callbacks and connectors of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from marl_aajr import AAJR, robustify
from marl_aajr.rllib.plugin.attacked_episodes import complaint
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS, ROLLOUTS_KEY
from marl_aajr.rllib.sampling.env import register
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.policy_modules import PlainModule
from tests.rllib.recorder import Recorder, chunks, filter_of, key, moved, runner_of
from tests.rllib.test_attacked_episodes import several, single

EPSILON = 0.1
ATTACK = RolloutAttack(epsilon=EPSILON)


@pytest.mark.parametrize("configure", [single, several])
def test_clean_observations_are_kept_over_the_end_of_an_episode(configure: Any) -> None:
    """Beside each decision stands what was true then, and nothing of an episode that has not begun."""
    runner = runner_of(robustify(configure(), AAJR(coefficient=1e-3), rollouts=ATTACK))
    recorder = Recorder(runner)
    parts = chunks(runner, num_timesteps=200)
    assert sum(one.is_done for one in parts) > 4
    for one in parts:
        true = np.stack(recorder.true[key(one)][one.t_started :][: len(one)])
        assert np.array_equal(one.get_extra_model_outputs(CLEAN_OBS), true)
        assert np.abs(one.get_observations()[:-1] - true).max() > 0.9 * EPSILON


def test_an_agent_may_end_one_step_before_its_episode() -> None:
    """Whoever no longer acts is given nothing beside decisions, whose last step would be refused by RLlib."""
    endings = {"a": (2, "terminated"), "b": (3, "terminated"), "c": (3, "truncated")}
    config = several().environment(register("tests.rllib.env_runs:scripted", kwargs={"endings": endings}))
    runner = runner_of(robustify(config, AAJR(), rollouts=ATTACK))
    recorder = Recorder(runner)
    parts = chunks(runner, num_timesteps=12)
    assert sorted(key(one)[1] for one in parts if one.is_done) == sorted("abc" * 4)
    for one in parts:
        assert len(one) == endings[one.agent_id][0]
        true = np.stack(recorder.true[key(one)][: len(one)])
        assert np.array_equal(one.get_extra_model_outputs(CLEAN_OBS), true)


def keeps_clean(config: AlgorithmConfig) -> bool:
    return all(CLEAN_OBS in one.extra_model_outputs for one in chunks(runner_of(config), num_timesteps=24))


def furthest(config: AlgorithmConfig) -> float:
    runner = runner_of(config)
    return float(moved(runner, Recorder(runner)).max())


def test_a_second_call_keeps_the_attack_of_the_first() -> None:
    """A regularizer that comes later begins at the truth; a later attack takes the other's place."""
    config = robustify(several(), None, rollouts=ATTACK)
    assert not keeps_clean(config)
    config = robustify(config, AAJR())
    assert furthest(config) > 0.9 * EPSILON
    assert keeps_clean(config)
    config = robustify(config, None, rollouts=RolloutAttack(epsilon=2 * EPSILON))
    assert keeps_clean(config)
    assert furthest(config) > 1.9 * EPSILON
    config = robustify(config, None, rollouts=RolloutAttack(share=0.0))
    assert ROLLOUTS_KEY not in config.learner_config_dict
    assert not any(
        "Attacked" in type(piece).__name__ for piece in runner_of(config)._env_to_module.connectors
    )
    assert not keeps_clean(config)


def test_callbacks_that_come_later_leave_the_attack_on() -> None:
    made = []
    config = robustify(several(), None, rollouts=ATTACK)
    config.callbacks(
        on_environment_created=lambda **_: made.append("environment"), on_algorithm_init=lambda **_: None
    )
    assert furthest(config) > 0.9 * EPSILON
    assert made == ["environment"]


class Own(ConnectorV2):
    """A piece that does nothing."""

    def __call__(self, *, batch: Any, **_: Any) -> Any:
        return batch


def before_modules(env: Any) -> ConnectorV2:
    """The signature of old, which RLlib still takes."""
    return Own()


def before_environments(env: Any) -> list[ConnectorV2]:
    return [Own()]


def test_connectors_of_the_old_signature_are_made_as_rllib_makes_them() -> None:
    config = several().env_runners(
        env_to_module_connector=before_modules, module_to_env_connector=before_environments
    )
    config = robustify(config, AAJR(), rollouts=ATTACK)
    runner = runner_of(config)
    for pipeline in (runner._env_to_module, runner._module_to_env):
        assert sum(isinstance(piece, Own) for piece in pipeline.connectors) == 1
    assert keeps_clean(config)


def test_a_connector_in_the_place_of_the_attack_is_refused() -> None:
    config = robustify(several(), None, rollouts=ATTACK)
    assert complaint(runner_of(config)) == ""
    config.env_runners(env_to_module_connector=before_modules)
    assert complaint(runner_of(config)).startswith(
        "expected AttackedEpisodes, made for this env runner, among"
    )


def test_a_type_error_of_a_users_own_is_raised() -> None:
    def wrong(env: Any, spaces: Any, device: Any) -> ConnectorV2:
        raise TypeError("expected something else")

    config = several().env_runners(env_to_module_connector=wrong)
    with pytest.raises(TypeError, match="expected something else"):
        runner_of(robustify(config, None, rollouts=ATTACK))


def test_an_adversary_leads_the_critic_of_a_module_that_acts_with_it() -> None:
    config = single().rl_module(rl_module_spec=RLModuleSpec(module_class=PlainModule))
    runner = runner_of(robustify(config, None, rollouts=RolloutAttack(epsilon=EPSILON, objective="value")))
    recorder = Recorder(runner)
    parts = chunks(runner, num_timesteps=40)
    true = [torch.as_tensor(np.stack(recorder.true[key(one)][: len(one) + 1])) for one in parts]
    seen = [torch.as_tensor(one.get_observations()) for one in parts]
    with torch.no_grad():
        clean, led = (runner.module.compute_values({Columns.OBS: torch.cat(rows)}) for rows in (true, seen))
    assert (led < clean).all()


def test_broadcasts_reach_the_runners_of_ppo_whenever_they_are_sent() -> None:
    """With RLlib's default of one open request it would be by chance that a schedule learns of its step."""
    for before, wanted in ((1, 64), (100, 100)):
        config = several().env_runners(max_requests_in_flight_per_env_runner=before)
        robustify(robustify(config, None, rollouts=ATTACK), AAJR())
        assert config.max_requests_in_flight_per_env_runner == wanted
        robustify(config, None, rollouts=RolloutAttack(share=0.0))
        assert config.max_requests_in_flight_per_env_runner == before
    ahead = IMPALAConfig()
    before = ahead.max_requests_in_flight_per_env_runner
    assert robustify(ahead, None, rollouts=ATTACK).max_requests_in_flight_per_env_runner == before


@pytest.mark.usefixtures("ray_session")
def test_a_filter_and_an_attack_of_two_runners_know_their_states_apart() -> None:
    """Pieces without a state stand behind the filter, or the reason is said before anything is played."""

    def algorithm(*pieces: Any) -> Any:
        config = several().env_runners(
            env_to_module_connector=lambda *_: [piece() for piece in pieces], num_env_runners=2
        )
        return robustify(config, None, rollouts=ATTACK).build_algo()

    def seen(runner: Any) -> Any:
        return [int(moments.count) for moments in filter_of(runner).total.values()]

    behind = algorithm(ObservationNormalizer, Own)
    try:
        behind.train()
        counts = behind.env_runner_group.foreach_env_runner(seen)
        assert counts[0] == counts[1] == counts[2] != []
    finally:
        behind.stop()
    with pytest.raises(ValueError, match="make ObservationNormalizer the first in env_to_module_connector"):
        algorithm(Own, ObservationNormalizer)
