"""One line turns an RLlib configuration into a fast one; RLlib's own training step does the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from mpe2 import simple_tag_v3
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib import robustify
from marl_aajr.rllib.lean.learner import LeanPPOTorchLearner
from marl_aajr.rllib.plugin.robust_learner import REGULARIZERS_KEY, RobustLearnerMixin
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.episode_metrics import RETURNS_KEY, EpisodeReturns
from marl_aajr.rllib.sampling.fast import FragmentsToBatch, fast
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.patience import PATIENCE
from tests.rllib.fast_runs import CIRCLE, OURS, SPREAD, TAG, TICTACTOE, config, masked, normalizer

SHORT = {"max_cycles": 10}


@contextmanager
def algorithm(configured: Any) -> Iterator[Any]:
    built = configured.build_algo()
    try:
        yield built
    finally:
        built.stop()


def changing(**settings: Any) -> Any:
    """A change to a configuration, by the method that makes it."""
    ((method, arguments),) = settings.items()
    return lambda configured: getattr(configured, method)(**arguments)


class CountsSteps(RLlibCallback):
    def on_episode_step(self, **_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changing(env_runners={"batch_mode": "complete_episodes"}), "complete_episodes"),
        (
            changing(env_runners={"module_to_env_connector": lambda env, spaces: []}),
            "module_to_env_connector",
        ),
        (changing(learners={"learner_connector": lambda obs, action: []}), "learner_connector"),
        (changing(callbacks={"on_episode_start": print}), "on_episode_start"),
        (changing(callbacks={"callbacks_class": CountsSteps}), "on_episode_step"),
        (changing(learners={"num_learners": 3}), "multiple of num_learners = 3"),
    ],
    ids=["complete episodes", "actions", "learner", "callback", "callbacks", "learners"],
)
def test_what_needs_episodes_is_refused(change: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fast(change(config()), SPREAD)


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(ValueError, match="APPOConfig"):
        fast(APPOConfig(), SPREAD)


def test_connectors_on_episodes_are_refused_when_the_runner_is_built() -> None:
    configured = config().env_runners(env_to_module_connector=lambda *_: MeanStdFilter(multi_agent=True))
    with pytest.raises(ValueError, match="MeanStdFilter"):
        FastEnvRunner(config=fast(configured, SPREAD), worker_index=0)


def test_agents_that_change_modules_are_refused() -> None:
    configured = config().multi_agent(policy_mapping_fn=lambda agent, episode: f"{episode.id_}")
    with pytest.raises(ValueError, match="policy_mapping_fn"):
        FastEnvRunner(config=fast(configured, SPREAD), worker_index=0).sample()


def test_agents_of_one_module_need_the_same_spaces() -> None:
    configured = config("all").multi_agent(policy_mapping_fn=lambda *_: "all")
    with pytest.raises(ValueError, match="different observation spaces"):
        FastEnvRunner(config=fast(configured, TAG), worker_index=0).sample()


def test_later_training_settings_are_noticed() -> None:
    configured = fast(config(), SPREAD).training(gamma=0.5)
    with pytest.raises(ValueError, match="gamma"):
        FastEnvRunner(config=configured, worker_index=0)


def test_our_own_callback_gives_way_to_the_same_metrics() -> None:
    configured = fast(config().callbacks(on_episode_end=EpisodeReturns({})), SPREAD)
    assert configured.callbacks_on_episode_end is None


def test_learner_becomes_the_lean_one_regularized_or_not() -> None:
    aajr = make_regularizer("aajr")
    assert fast(config(), SPREAD).learner_class is LeanPPOTorchLearner
    before, after = fast(robustify(config(), aajr), SPREAD), robustify(fast(config(), SPREAD), aajr)
    assert before.learner_class is after.learner_class
    assert issubclass(before.learner_class, RobustLearnerMixin)
    assert issubclass(before.learner_class, LeanPPOTorchLearner)


def test_learner_of_ones_own_stays() -> None:
    class Own(PPOTorchLearner):
        pass

    assert fast(config().learners(learner_class=Own), SPREAD).learner_class is Own
    assert fast(config(), SPREAD, lean=False).learner_class is PPOTorchLearner


class OnlyABatch(PettingZooBatch):
    """A batch that exists in this form only."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        super().__init__(resolve(SPREAD, SHORT), num_envs, device=device)


def test_batch_of_ones_own_is_taken() -> None:
    runner = FastEnvRunner(config=fast(config(copies=3), OnlyABatch), worker_index=0)
    assert runner.env is not None
    assert type(runner.env.batch).__name__ == "OnlyABatch"
    assert runner.num_envs == 3


def test_batch_of_ones_own_is_none_for_rllibs_runner() -> None:
    configured = fast(config(), OnlyABatch).env_runners(env_runner_cls=MultiAgentEnvRunner)
    with pytest.raises(ValueError, match="use FastEnvRunner"):
        MultiAgentEnvRunner(config=configured, worker_index=0)


def observations_counted(built: Any) -> int:
    normalizer = built.env_runner.normalizer
    assert normalizer is not None
    return normalizer.total["agent"].count


def test_training_step_is_rllibs(ray_session: None) -> None:
    configured = fast(
        config("adversary", "agent", copies=8, steps=20), TAG, kwargs=SHORT, time_limits_terminate=True
    )
    with algorithm(configured) as built:
        before = built.get_weights()
        result = built.train()
        learned = result["learners"]
        assert result["env_runners"]["num_env_steps_sampled"] == 160
        assert result["env_runners"][RETURNS_KEY]["episodes"] == 16
        assert set(learned) >= {"adversary", "agent"}
        for module in ("adversary", "agent"):
            assert learned[module]["policy_loss"] == pytest.approx(learned[module]["policy_loss"])
            assert any(
                (before[module][name] != value).any() for name, value in built.get_weights()[module].items()
            )
        pipeline = built.learner_group._learner._learner_connector
        assert [type(piece) for piece in pipeline.connectors] == [FragmentsToBatch]


def test_masked_games_in_turns_are_trained(ray_session: None) -> None:
    with algorithm(fast(masked(config("player", copies=8, steps=20)), TICTACTOE)) as built:
        for _ in range(2):
            result = built.train()
        assert result["env_runners"][RETURNS_KEY]["episodes"] > 0
        assert result["learners"]["player"]["entropy"] > 0


def test_remote_runners_merge_filters_evaluate_and_come_back_from_the_dead(ray_session: None) -> None:
    """Of an environment that a closure makes, which travels to them."""
    cycles = 10

    def make() -> Any:
        return simple_tag_v3.parallel_env(max_cycles=cycles)

    configured = (
        config("adversary", "agent", copies=4, steps=40)
        .env_runners(
            num_env_runners=2,
            num_cpus_per_env_runner=0.5,
            env_to_module_connector=normalizer,
            max_requests_in_flight_per_env_runner=64,
        )
        .evaluation(evaluation_interval=1, evaluation_duration=6, evaluation_config={"explore": False})
        .fault_tolerance(restart_failed_env_runners=True)
    )
    with algorithm(fast(configured, resolve(make))) as built:
        result = built.train()
        assert result["env_runners"]["num_env_steps_sampled"] == 160
        assert result["env_runners"]["episode_len_mean"] == cycles
        assert result["evaluation"]["env_runners"]["num_episodes"] == 6
        seen = observations_counted(built)
        # Each runner saw the first observations, one after each of 20 steps, and the last of both episodes.
        assert seen == 2 * 4 * (1 + 20 + 2)
        (first, _) = built.env_runner_group._worker_manager.actors().values()
        ray.kill(first, no_restart=False)
        deadline = time.monotonic() + PATIENCE
        built.train()
        while built.env_runner_group.num_healthy_remote_workers() < 2:
            assert time.monotonic() < deadline, "the runner did not come back"
            built.train()
        assert built.train()["env_runners"]["num_env_steps_sampled"] == 160


def test_two_learners_share_the_rows_of_agents_that_wait(ray_session: None) -> None:
    configured = config("a", "b", "c", copies=4, steps=20).learners(num_learners=2, num_cpus_per_learner=0.5)
    configured.training(train_batch_size_per_learner=40, minibatch_size=16)
    with algorithm(fast(configured, CIRCLE, kwargs={"endings": "staggered"})) as built:
        for _ in range(2):
            built.train()
        states = built.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"])
        first, second = (state.get() for state in states)
        for module in ("a", "b", "c"):
            for name, value in first[module].items():
                assert (value == second[module][name]).all()


def test_checkpoint_brings_weights_and_filter_back(ray_session: None, tmp_path: Any) -> None:
    configured = config().env_runners(env_to_module_connector=normalizer)
    with algorithm(fast(configured, SPREAD, kwargs=SHORT)) as built:
        built.train()
        path = built.save_to_path(str(tmp_path))
        weights, seen = built.get_weights()["agent"], observations_counted(built)
        built.train()
        assert observations_counted(built) > seen
        assert any((built.get_weights()["agent"][name] != value).any() for name, value in weights.items())
        built.restore_from_path(path)
        assert observations_counted(built) == seen
        assert all((built.get_weights()["agent"][name] == value).all() for name, value in weights.items())


def assert_drawn(folder: Path) -> None:
    """TensorBoard shows the penalty of a run of Tune, and what is measured with it."""
    (events,) = folder.glob("*/*/events.out.tfevents.*")
    curves = EventAccumulator(str(events)).Reload()
    for name in ("penalty", "loss_share", "gain_mean", "gain_max", "monotone_fraction", "seconds"):
        (first, second) = curves.Scalars(f"ray/tune/learners/agent/aajr/{name}")
        assert first.step < second.step
    assert all(point.value > 0 for point in curves.Scalars("ray/tune/learners/agent/aajr/penalty"))


def test_tune_runs_it_in_a_process_of_its_own(ray_session: None, tmp_path: Any) -> None:
    configured = config(copies=4, steps=20).env_runners(env_to_module_connector=normalizer)
    configured.training(lr=tune.grid_search([0.01]))
    regularizers = [make_regularizer("aajr", coefficient=0.02, sample_fraction=1.0)]
    configured = fast(robustify(configured, tune.grid_search(regularizers)), OURS, kwargs=SHORT)
    tuner = tune.Tuner(
        configured.algo_class,
        param_space=configured,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    )
    (result,) = tuner.fit()
    assert result.error is None
    assert result.metrics["config"]["lr"] == 0.01
    assert result.metrics["env_runners"]["num_env_steps_sampled_lifetime"] == 160
    assert result.metrics["env_runners"][RETURNS_KEY]["episodes"] == 8
    assert result.metrics["learners"]["agent"]["aajr"]["gain_mean"] > 0
    assert result.metrics["config"]["learner_config_dict"][REGULARIZERS_KEY] == regularizers[0]
    assert_drawn(tmp_path)
    restored = Algorithm.from_checkpoint(result.checkpoint.path)
    try:
        assert observations_counted(restored) == 2 * 3 * 4 * (20 + 2) + 3 * 4
        assert restored.train()["env_runners"]["num_env_steps_sampled_lifetime"] == 240
    finally:
        restored.stop()
