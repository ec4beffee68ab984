"""Rollouts under attack in RLlib's own env runners: what agents saw is what acted and what is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from marl_aajr import AAJR, robustify
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rllib.sampling.observation_filter import ObservationNormalizer
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.env_runs import Masked
from tests.rllib.recorder import Recorder, attacked_episodes, chunks, filter_of, key, moved, runner_of, size
from tests.rllib.test_algorithms import ppo, sac, train

EPSILON = 0.1
ATTACK = RolloutAttack(epsilon=EPSILON)


def single(**settings: Any) -> AlgorithmConfig:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16], **settings))
        .debugging(seed=0)
    )


def several(envs: int = 2) -> AlgorithmConfig:
    return ppo().env_runners(num_envs_per_env_runner=envs)


@pytest.mark.parametrize("configure", [single, several])
@pytest.mark.parametrize("recurrent", [False, True], ids=["plain", "lstm"])
def test_what_acted_is_what_is_kept(configure: Any, recurrent: bool) -> None:
    """The log-probability from what the learner will read is the one that the runner kept."""
    config = configure()
    if recurrent:
        config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8], use_lstm=True, lstm_cell_size=8))
    runner = runner_of(robustify(config, None, rollouts=ATTACK))
    recorder = Recorder(runner)
    for _ in range(3):
        parts = chunks(runner, num_timesteps=24)
        assert parts
        for one in parts:
            kept, far = one.get_observations(), size(one, recorder)
            assert far.max() <= EPSILON + 1e-5
            assert far.mean() > 0.9 * EPSILON
            module = runner.module if one.module_id is None else runner.module[one.module_id]
            batch: dict[str, Any] = {Columns.OBS: torch.as_tensor(kept[:-1])}
            if recurrent:
                if one.t_started:
                    continue  # The state at the beginning of this chunk is in the one before.
                state = {k: torch.as_tensor(v)[None] for k, v in module.get_initial_state().items()}
                batch = {Columns.OBS: batch[Columns.OBS][None], Columns.STATE_IN: state}
            with torch.no_grad():
                inputs = module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS]
            inputs = inputs.squeeze(0) if recurrent else inputs
            logp = module.get_exploration_action_dist_cls().from_logits(inputs)
            logp = logp.logp(torch.as_tensor(one.get_actions()))
            expected = one.get_extra_model_outputs(Columns.ACTION_LOGP)
            torch.testing.assert_close(logp, torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_share_of_the_copies_a_choice_of_agents_and_a_range_of_radii() -> None:
    attack = RolloutAttack(epsilon=EPSILON, share=0.5, agents=("agent_1",), epsilon_draw=(0.5, 0.9))
    runner = runner_of(robustify(several(4), None, rollouts=attack))
    recorder = Recorder(runner)
    sizes: dict[Any, list[float]] = {}
    for _ in range(2):
        for one in chunks(runner, num_timesteps=24):
            sizes.setdefault(key(one), []).extend(size(one, recorder))
    hit = [who for who, far in sizes.items() if max(far) > 0]
    episodes = {episode for episode, _ in sizes}
    assert {agent for _, agent in hit} == {"agent_1"}
    assert len(hit) == len(episodes) / 2
    for who in hit:
        assert 0.5 * EPSILON - 1e-5 <= min(sizes[who]) <= max(sizes[who]) <= 0.9 * EPSILON + 1e-5
        assert np.ptp(sizes[who]) < 1e-5


def test_nobody_is_attacked_without_exploration_in_evaluation_or_before_the_schedule() -> None:
    later = RolloutAttack(epsilon=[[0, 0], [100, 0], [101, EPSILON]])  # type: ignore[arg-type]
    runner = runner_of(robustify(several(), None, rollouts=later))
    recorder = Recorder(runner)
    assert moved(runner, recorder).max() == 0
    runner.num_env_steps_sampled_lifetime = 200  # As the algorithm tells it before each iteration.
    assert moved(runner, recorder).max() > 0.9 * EPSILON
    runner = runner_of(robustify(several(), None, rollouts=ATTACK))
    assert moved(runner, Recorder(runner), explore=False).max() == 0
    config = robustify(several(), None, rollouts=ATTACK)
    config.in_evaluation = True
    runner = runner_of(config)
    assert moved(runner, Recorder(runner)).max() == 0


def test_epsilon_is_in_units_of_the_environment_behind_our_filter() -> None:
    """Its statistics are of what was true, and give ε no size at the first observation of one copy."""
    config = single().env_runners(
        env_to_module_connector=lambda *_: ObservationNormalizer(), num_envs_per_env_runner=1
    )
    runner = runner_of(robustify(config, None, rollouts=ATTACK))
    recorder = Recorder(runner)
    parts = chunks(runner, num_timesteps=40)
    first, last = parts[0], parts[-1]
    (moments,) = filter_of(runner).total.values()
    true = {who: np.stack(rows) for who, rows in recorder.true.items()}
    assert moments.count == sum(map(len, true.values())) == sum(len(one) + 1 for one in parts)
    assert np.array_equal(first.get_observations()[0], true[key(first)][0])
    moved = np.abs(last.get_observations()[-1] - true[key(last)][-1]) * (moments.std + 1e-6)
    np.testing.assert_allclose(moved, EPSILON, rtol=1e-3)


def logits(runner: Any, obs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(
            runner.module.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
        )


def test_the_attack_is_on_the_weights_of_now() -> None:
    """It is nearly as good as the best corner of the ε-cube, also after the weights have changed."""
    runner = runner_of(robustify(single(), None, rollouts=ATTACK))
    corners = torch.cartesian_prod(*[torch.tensor([-EPSILON, EPSILON])] * 4)
    for _ in range(2):
        recorder = Recorder(runner)
        for one in chunks(runner, num_timesteps=40, force_reset=True):
            true = torch.as_tensor(np.stack(recorder.true[key(one)]))
            seen = torch.as_tensor(one.get_observations())
            best = logits(runner, true).argmax(-1, keepdim=True)
            clean, kept, *others = (
                2 * logits(runner, obs).gather(1, best).squeeze(1) - logits(runner, obs).sum(1)
                for obs in (true, seen, *(true + corner for corner in corners))
            )
            worst = torch.stack(others).amin(0)
            assert (clean - kept).mean() > 0.95 * (clean - worst).mean()
        with torch.no_grad():
            first = next(p for p in runner.module.encoder.parameters() if p.ndim == 2)
            first[:, :2].neg_()


def test_the_same_seed_is_the_same_attack() -> None:
    attack = RolloutAttack(epsilon=EPSILON, objective="kl", attacked_steps=(2, 5))
    found = []
    for seed in (0, 0, 1):
        runner = runner_of(robustify(single().debugging(seed=seed), None, rollouts=attack))
        runner.env.reset(seed=0)
        found.append(np.concatenate([one.get_observations() for one in chunks(runner, num_timesteps=24)]))
    assert np.array_equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not np.array_equal(found[0], found[2])


def test_what_is_drawn_does_not_depend_on_when_rllib_tells_of_other_runners() -> None:
    """It merges what they know, and drops what it has to tell where a runner is still busy."""
    attack = RolloutAttack(epsilon=EPSILON, objective="kl", attacked_steps=(2, 5))
    config = robustify(several(), None, rollouts=attack)
    found = []
    for told in (False, True):
        first, second = (runner_of(config, index=index) for index in (1, 2))
        first.env.reset(seed=0)
        parts = chunks(first, num_timesteps=12)
        if told:
            chunks(second, num_timesteps=24)
            pipeline = first._env_to_module
            pipeline.set_state(pipeline.merge_states([r._env_to_module.get_state() for r in (first, second)]))
        torch.manual_seed(1)
        parts += chunks(first, num_timesteps=12)
        found.append(np.concatenate([one.get_observations() for one in parts]))
    assert np.array_equal(found[0], found[1])


def weights_of(config: AlgorithmConfig, times: int = 2) -> dict[str, Any]:
    algorithm = config.build_algo()
    try:
        train(algorithm, times=times)
        return algorithm.get_module("team").state_dict()
    finally:
        algorithm.stop()


def check_train_batch(algorithm: Any) -> None:
    """What RLlib's learner pipeline makes of a sample is what agents saw, up to ε from what was true."""
    runner, learner = algorithm.env_runner, algorithm.learner_group._learner
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
    recorder = Recorder(runner)
    episodes = runner.sample(num_timesteps=24, force_reset=True)
    batch = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics
    )["team"]
    rows = batch[Columns.LOSS_MASK]
    obs, actions = batch[Columns.OBS][rows], batch[Columns.ACTIONS][rows]
    module = learner.module["team"].unwrapped()
    inputs = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS]
    log_probs = module.get_train_action_dist_cls().from_logits(inputs).logp(actions)
    torch.testing.assert_close(log_probs, batch[Columns.ACTION_LOGP][rows], atol=1e-5, rtol=1e-5)
    true = torch.as_tensor(np.stack([row for rows in recorder.true.values() for row in rows]))
    nearest = torch.cdist(obs, true, p=float("inf")).amin(1)
    assert len(obs) == 24 * 3
    assert nearest.mean() > 0.5 * EPSILON
    assert nearest.max() <= EPSILON + 1e-5
    clean = batch[CLEAN_OBS][rows]
    assert torch.cdist(clean, true, p=float("inf")).amin(1).max() == 0, "regularizers begin at the truth"
    assert (clean - obs).abs().amax(1).max() <= EPSILON + 1e-5


@pytest.mark.usefixtures("ray_session")
def test_two_iterations_of_ppo_and_nothing_changes_where_nobody_is_attacked(tmp_path: Path) -> None:
    plain = weights_of(several())
    none = weights_of(robustify(several(), None, rollouts=RolloutAttack(share=0.0)))
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    both = robustify(several(), AAJR(coefficient=1e-3, epsilon=EPSILON), rollouts=ATTACK)
    algorithm = both.build_algo()
    train(algorithm, times=2)
    found = algorithm.get_module("team").state_dict()
    assert any(not torch.equal(plain[name], found[name]) for name in plain)
    path = algorithm.save_to_path(tmp_path)
    check_train_batch(algorithm)
    algorithm.stop()
    again = both.copy(copy_frozen=False).build_algo()
    again.restore_from_path(path)
    again.env_runner.sample(num_timesteps=4)
    assert attacked_episodes(again.env_runner)._begun == (0, 200), (
        "it draws other numbers than in the beginning"
    )
    again.stop()


@pytest.mark.parametrize(
    ("configure", "attack", "message"),
    [
        (ppo, RolloutAttack(critic="clean"), "expected critic 'seen'"),
        (ppo, RolloutAttack(path="one"), "expected path 'none'"),
        (ppo, RolloutAttack(share=0.1), "share that gives at least one"),
        (ppo, None, "expected a regularizer, rollouts under attack, or both"),
        (sac, ATTACK, "expected PPO, IMPALA or APPO"),
        (lambda: fast(ppo(), "simple_spread_v3"), ATTACK, "got FastEnvRunner; give it to fast"),
    ],
)
def test_what_the_configuration_tells_is_refused_at_once(configure: Any, attack: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustify(configure(), None, rollouts=attack)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("attack", "connector", "runners", "message"),
    [
        (RolloutAttack(objective="value"), None, 0, "module that acts with a critic"),
        (RolloutAttack(agents=("nobody",)), None, 0, "to attack in the rollouts, got nobody"),
        (ATTACK, lambda *_: MeanStdFilter(multi_agent=True), 1, "expected no observation filter"),
    ],
)
def test_what_the_modules_cannot_do_is_refused_before_anything_is_played(
    attack: RolloutAttack, connector: Any, runners: int, message: str
) -> None:
    config = several().env_runners(env_to_module_connector=connector, num_env_runners=runners)
    config = robustify(robustify(config, None, rollouts=ATTACK), None, rollouts=attack)
    with pytest.raises(ValueError, match=message):
        config.build_algo()


@pytest.mark.parametrize("flattened", [False, True])
def test_action_masks_are_left_as_they_are(flattened: bool) -> None:
    config = single().environment(Masked)
    if flattened:
        config.env_runners(env_to_module_connector=lambda *_: FlattenObservations())
    else:
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    attack = RolloutAttack(epsilon=EPSILON, objective="kl")
    for one in chunks(runner_of(robustify(config, None, rollouts=attack)), num_timesteps=24):
        kept = one.get_observations()
        mask, own = np.split(kept, [2], -1) if flattened else (kept["action_mask"], kept["observations"])
        assert (mask == [1, 0]).all()
        assert flattened or (one.get_actions() == 0).all()
        far = np.abs(own - np.array([0.1, 0.2, 0.3], np.float32)).max(-1)
        assert far.max() <= EPSILON + 1e-5
        assert not flattened or far.min() > 0
