"""Modules that nobody trains may be anything; learners without distribution inputs have Q-values."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.examples.rl_modules.classes.random_rlm import RandomRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from marl_aajr import AAJR, fast, register, robustify
from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib.internals.modules import actor_forward
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.victims import victim_from_modules
from tests.rllib.fast_runs import TAG, config, fragment, runner
from tests.rllib.learners import ACTIONS, OBS
from tests.rllib.victim_toys import observed

ANY_SPACES = "tests.rllib.victim_toys:AnySpaces"
ACTIVE = AAJR(coefficient=0.1, epsilon=0.1)


class Heuristic(RLModule):
    """Always the same action; no network."""

    def _forward(self, batch: Any, **_: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: [3] * len(batch[Columns.OBS])}


def with_opponent(module: type[RLModule], *, trained: Any = ("adversary",)) -> Any:
    specs = {"adversary": RLModuleSpec(), "agent": RLModuleSpec(module_class=module)}
    return (
        config("adversary", "agent")
        .multi_agent(policies_to_train=trained)
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    )


@pytest.mark.parametrize("module", [RandomRLModule, Heuristic])
def test_opponents_without_a_network_play_by_their_actions(module: type[RLModule]) -> None:
    subject = runner(with_opponent(module), TAG)
    played = fragment(subject, num_timesteps=200)
    actions = played.modules["agent"].actions.flatten().tolist()
    assert set(actions) == ({3} if module is Heuristic else {0, 1, 2, 3, 4})
    assert played.modules["adversary"].inputs.isfinite().all()
    (whole,) = subject.sample(num_episodes=2, explore=False)
    assert whole.env_steps() == 2 * 25


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "stock"])
def test_one_regularizer_for_all_leaves_out_whom_nobody_trains(is_fast: bool) -> None:
    configured = with_opponent(RandomRLModule)
    if is_fast:
        fast(configured, TAG, kwargs={"max_cycles": 10})
    else:
        configured.environment(register(TAG, kwargs={"max_cycles": 10}))
    algorithm = robustify(configured, ACTIVE).build_algo()
    try:
        learners = algorithm.train()["learners"]
    finally:
        algorithm.stop()
    assert learners["adversary"]["aajr"]["penalty"] > 0
    assert "aajr" not in learners.get("agent", {})


def test_only_modules_that_play_in_a_victim_need_a_network() -> None:
    spaces = {"observation_space": observed((6,)), "action_space": gym.spaces.Discrete(5)}
    modules: dict[str, Any] = {
        "module": FlatActorCritic(**spaces, model_config={"fcnet_hiddens": [4]}),
        "random": RandomRLModule(**spaces),
    }
    idle = victim_from_modules(modules, ANY_SPACES, policy_mapping_fn=dict.fromkeys(("a_0", "a_1"), "module"))
    assert set(idle.modules) == {"module"}
    with pytest.raises(ValueError, match="got RandomRLModule for 'random'; map its agents to another"):
        victim_from_modules(modules, ANY_SPACES, policy_mapping_fn={"a_0": "module", "a_1": "random"})


def test_a_heuristic_that_is_to_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="with compute_values to train, got Heuristic for 'agent'; leave it"):
        runner(with_opponent(Heuristic, trained=None), TAG)


def dqn(regularizer: Any = None, **training: Any) -> Any:
    configured = (
        DQNConfig()
        .multi_agent(policies={"p"}, policy_mapping_fn=lambda *_, **__: "p")
        .training(lr=1e-2, **training)
        .debugging(seed=0)
    )
    if regularizer is not None:
        robustify(configured, regularizer)
    torch.manual_seed(0)
    subject = configured.build_learner(spaces={"p": (OBS, ACTIONS)})
    subject.build()
    return subject


def transitions(rows: int = 32) -> MultiAgentBatch:
    rng = np.random.default_rng(0)
    columns = {
        Columns.OBS: rng.normal(size=(rows, *OBS.shape)).astype(np.float32),
        Columns.NEXT_OBS: rng.normal(size=(rows, *OBS.shape)).astype(np.float32),
        Columns.ACTIONS: rng.integers(ACTIONS.n, size=rows),
        Columns.REWARDS: rng.normal(size=rows).astype(np.float32),
        Columns.TERMINATEDS: np.zeros(rows, np.float32),
        Columns.TRUNCATEDS: np.zeros(rows, np.float32),
        "weights": np.ones(rows, np.float32),
        "n_step": np.ones(rows, np.float32),
    }
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return MultiAgentBatch({"p": SampleBatch(tensors)}, env_steps=rows)


def trained(subject: Any) -> tuple[Tensor, Any]:
    for _ in range(3):
        result = subject.update(batch=transitions(), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0})
    weights = [p.detach().flatten() for p in subject.module["p"].unwrapped().parameters()]
    return torch.cat(weights), result["p"]


@pytest.mark.parametrize(
    "training", [{}, {"double_q": False, "dueling": False}, {"num_atoms": 5, "v_min": -2.0, "v_max": 2.0}]
)
def test_q_values_are_the_logits_of_the_greedy_policy(training: dict[str, Any]) -> None:
    (plain, _), (zero, _) = trained(dqn(**training)), trained(dqn(AAJR(coefficient=0.0), **training))
    assert torch.equal(plain, zero)
    subject = dqn(AAJR(coefficient=10.0, epsilon=0.1, objective="margin"), **training)
    module = subject.module["p"].unwrapped()
    forward, _ = actor_forward(module)
    obs = {Columns.OBS: transitions()["p"][Columns.OBS]}
    greedy = module.forward_inference(dict(obs))[Columns.ACTIONS]
    assert torch.equal(forward(dict(obs)).argmax(-1), greedy)
    weights, result = trained(subject)
    assert not torch.allclose(plain, weights, atol=1e-3)
    assert result["aajr"]["penalty"] > 0


def test_what_a_q_learner_cannot_give_is_refused_at_once() -> None:
    for name, reason in (
        ("adversarial_training", "advantages"),
        ("noise_augmentation", "policy loss"),
        ("spectral_normalization", "an actor of its own.*regularizer that works through the loss"),
    ):
        with pytest.raises(ValueError, match=reason):
            dqn(make_regularizer(name))
