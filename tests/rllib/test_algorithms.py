"""The one line in front of RLlib's own algorithms, trained for real on a multi-agent environment."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.impala import IMPALA, IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from marl_aajr import AAJR, robustify
from marl_aajr.core.checks import NonFiniteError
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS
from marl_aajr.rllib.sampling.env import register
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack

ACTIVE = AAJR(coefficient=0.1, epsilon=0.2, interval=1)
PENALTY = ("learners", "team", "aajr", "penalty")


def on_spread(config: AlgorithmConfig, **kwargs: Any) -> AlgorithmConfig:
    return (
        config.environment(register("simple_spread_v3", kwargs={"max_cycles": 10, **kwargs}))
        .multi_agent(policies={"team"}, policy_mapping_fn=lambda agent, *_, **__: "team")
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .debugging(seed=0, log_level="ERROR")
    )


def ppo() -> AlgorithmConfig:
    config = PPOConfig().training(train_batch_size=100, minibatch_size=64, num_epochs=1)
    return on_spread(config.env_runners(num_env_runners=0))


def sac() -> AlgorithmConfig:
    config = SACConfig().training(
        train_batch_size_per_learner=16,
        num_steps_sampled_before_learning_starts=20,
        replay_buffer_config={"type": "MultiAgentEpisodeReplayBuffer", "capacity": 500},
    )
    config.reporting(min_sample_timesteps_per_iteration=40, min_time_s_per_iteration=0)
    return on_spread(config.env_runners(num_env_runners=0), continuous_actions=True)


def asynchronous(config: AlgorithmConfig) -> AlgorithmConfig:
    # RLlib would ask for samples without a pause while the runner starts.
    config.training(train_batch_size_per_learner=50, timeout_s_sampler_manager=0.05)
    config.reporting(min_time_s_per_iteration=0.2)
    return on_spread(config.env_runners(num_env_runners=1, rollout_fragment_length=10))


def read(result: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        result = result.get(key, {})
    return result


def moved_in_play(runner: Any) -> np.ndarray:
    """How far what each agent acted on was from what was true, in a sample of an env runner."""
    parts = [one for episode in runner.sample(num_timesteps=10) for one in episode.agent_episodes.values()]
    seen = np.concatenate([one.get_observations()[: len(one)] for one in parts])
    return np.abs(seen - np.concatenate([one.get_extra_model_outputs(CLEAN_OBS) for one in parts])).max(-1)


def spoil(learner: TorchLearner) -> None:
    """Make the outputs of the policy NaN."""
    for parameter in learner.module["team"].unwrapped().pi.parameters():
        parameter.data.fill_(float("nan"))


def train(algorithm: Algorithm, *, times: int) -> None:
    for _ in range(times):
        algorithm.train()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("configure", "rollouts", "adapted"),
    [
        (sac, None, "curr_log_alpha"),
        (
            lambda: asynchronous(APPOConfig().training(use_kl_loss=True).learners(num_learners=0)),
            RolloutAttack(),
            "curr_kl_coeffs_per_module",
        ),
        (lambda: asynchronous(IMPALAConfig()), RolloutAttack(), "entropy"),
    ],
    ids=["SAC", "APPO", "IMPALA"],
)
def test_the_penalty_is_active_in_every_algorithm_and_the_rollouts_are_attacked(
    configure: Any, rollouts: RolloutAttack | None, adapted: str
) -> None:
    algorithm = robustify(configure(), ACTIVE, rollouts=rollouts).build_algo()
    try:
        for _ in range(300):
            result = algorithm.train()
            if read(result, PENALTY):
                break
        assert float(read(result, PENALTY)) > 0
        assert float(read(result, (*PENALTY[:3], "nonfinite"))) == 0
        assert list(algorithm.learner_group.get_state()["learner"]["marl_aajr_adapted"][adapted]) == ["team"]
        if rollouts is not None:
            (sizes,) = algorithm.env_runner_group.foreach_env_runner(moved_in_play, local_env_runner=False)
            assert len(sizes) > 0
            np.testing.assert_allclose(sizes, rollouts.epsilon, rtol=1e-3)
        if type(algorithm) is IMPALA:  # APPO, which is one too, learns in the same thread.
            # Errors in the learner's thread are raised where they can be seen. A runner that got weights of
            # NaN would fail first, and RLlib would wait for its samples.
            vars(algorithm.config)["broadcast_interval"] = 1_000_000
            algorithm.learner_group.foreach_learner(spoil)
            with pytest.raises(NonFiniteError, match="'aajr' of module 'team'"):
                train(algorithm, times=150)
    finally:
        algorithm.stop()


@pytest.mark.usefixtures("ray_session")
def test_an_algorithm_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Of RLlib alone: `save_to_path`, `from_checkpoint`."""
    dual = AAJR(coefficient=0.1, interval=1, epsilon=0.2, form="constraint", gain_bound=1e-3)
    config = ppo().training(
        lr=[[0, 1e-2], [400, 1e-4]], entropy_coeff=[[0, 0.1], [400, 0.0]], kl_coeff=0.2, kl_target=1e-9
    )
    straight = robustify(config, dual).build_algo()
    try:
        straight.train()
        straight.save_to_path(str(tmp_path))
        restored = Algorithm.from_checkpoint(str(tmp_path))
        try:
            learners = [algorithm.learner_group.get_state()["learner"] for algorithm in (straight, restored)]
            for state in learners:
                adapted = state["marl_aajr_adapted"]
                assert adapted["curr_kl_coeffs_per_module"]["team"] == pytest.approx(0.3)
                assert 0 < adapted["entropy"]["team"] < 0.1
            episodes = straight.env_runner.sample(num_episodes=4)
            for algorithm in (straight, restored):
                algorithm.learner_group.update(
                    episodes=deepcopy(episodes),
                    timesteps={"num_env_steps_sampled_lifetime": 200},
                    num_epochs=1,
                )
            one, other = (
                algorithm.learner_group.get_state()["learner"] for algorithm in (straight, restored)
            )
            for part in ("rl_module", "optimizer", "marl_aajr", "marl_aajr_adapted"):
                tree.map_structure(np.testing.assert_array_equal, one[part], other[part])
            assert (
                one["marl_aajr"]["modules"]["team"]["dual"]
                != learners[0]["marl_aajr"]["modules"]["team"]["dual"]
            )
        finally:
            restored.stop()
    finally:
        straight.stop()


def test_a_learner_that_differentiates_other_losses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with the compute_gradients of .* got CQLTorchLearner"):
        robustify(on_spread(CQLConfig()), ACTIVE)
