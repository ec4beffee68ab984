"""Modules that nobody trains may be anything; learners without distribution inputs have Q-values."""

from __future__ import annotations

from pathlib import Path
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

from marl_aajr import AAJR, evaluate, fast, register, robustify
from marl_aajr.core.distributions import from_space
from marl_aajr.regularizers import make_regularizer
from marl_aajr.rllib.internals.modules import actor_forward
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.playing_networks import LiveModule
from marl_aajr.rllib.victims import victim_from_checkpoint, victim_from_modules
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


def train_all_with_one_regularizer(configured: Any, checkpoint: Path) -> None:
    """And see that it leaves out whom nobody trains."""
    algorithm = robustify(configured, ACTIVE).build_algo()
    try:
        learners = algorithm.train()["learners"]
        algorithm.save_to_path(str(checkpoint))
    finally:
        algorithm.stop()
    assert learners["adversary"]["aajr"]["penalty"] > 0
    assert "aajr" not in learners.get("agent", {})


@pytest.mark.usefixtures("ray_session")
def test_one_regularizer_for_all_leaves_out_whom_nobody_trains(tmp_path: Path) -> None:
    configured = fast(with_opponent(RandomRLModule), TAG, kwargs={"max_cycles": 10})
    train_all_with_one_regularizer(configured, tmp_path)


def test_modules_of_a_victim_may_play_by_their_actions() -> None:
    spaces = {"observation_space": observed((6,)), "action_space": gym.spaces.Discrete(5)}
    modules: dict[str, Any] = {
        "module": FlatActorCritic(**spaces, model_config={"fcnet_hiddens": [4]}),
        "heuristic": Heuristic(**spaces),
    }
    idle = victim_from_modules(modules, ANY_SPACES, policy_mapping_fn=dict.fromkeys(("a_0", "a_1"), "module"))
    assert set(idle.modules) == {"module"}
    mapping = {"a_0": "module", "a_1": "heuristic"}
    victim = victim_from_modules(modules, ANY_SPACES, policy_mapping_fn=mapping)
    obs = torch.randn(4, 6)
    assert victim.greedy("a_1", victim.policy("a_1")(obs)).tolist() == [3] * 4
    drawn = victim.distribution("a_1").sample(victim.policy("a_1")(obs), generator=torch.Generator())
    assert drawn.tolist() == [3] * 4
    modules["heuristic"] = "none"
    with pytest.raises(ValueError, match="got str for 'heuristic'; map its agents to another"):
        victim_from_modules(modules, ANY_SPACES, policy_mapping_fn=mapping)


@pytest.mark.parametrize(
    ("space", "given", "wanted"),
    [
        (gym.spaces.Discrete(3, start=2), [2, 4], [0, 2]),
        (gym.spaces.MultiDiscrete([2, 3]), [[1, 0], [0, 2]], [[1, 0], [0, 2]]),
        (gym.spaces.Box(-1, 1, (2,)), [[0.5, 1.0], [-1.0, 0.25]], [[0.5, 1.0], [-1.0, 0.25]]),
    ],
    ids=["discrete", "multi", "box"],
)
def test_actions_are_certain(space: gym.Space[Any], given: Any, wanted: Any) -> None:
    class Fixed(RLModule):
        def _forward(self, batch: Any, **_: Any) -> dict[str, Any]:
            return {Columns.ACTIONS: np.array(given)}

    outputs = LiveModule(Fixed(observation_space=observed((6,)), action_space=space))(torch.zeros(2, 6))
    kind = from_space(space)
    assert kind.mode(outputs).tolist() == wanted
    drawn = kind.sample(outputs, generator=torch.Generator())
    assert torch.allclose(drawn.float(), torch.tensor(wanted).float())


@pytest.mark.usefixtures("ray_session")
def test_a_random_opponent_of_a_checkpoint_plays_and_repeats(tmp_path: Path) -> None:
    configured = with_opponent(RandomRLModule).environment(register(TAG, kwargs={"max_cycles": 10}))
    train_all_with_one_regularizer(configured, tmp_path)
    settings: dict[str, Any] = {"team": "adversary", "attacks": [("pgd", 0.1)], "episodes": 4}
    victims = [victim_from_checkpoint(tmp_path, env=TAG, env_kwargs={"max_cycles": 10}) for _ in range(2)]
    first, again = (evaluate(victim, **settings).clean.team_returns for victim in victims)
    assert first == again
    assert first["good"] != 0
    width = victims[0].observation_spaces["agent_0"].shape[0]
    assert set(victims[0].policy("agent_0")(torch.zeros(50, width)).argmax(-1).tolist()) == {0, 1, 2, 3, 4}


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
    subject = dqn(AAJR(coefficient=10.0, epsilon=0.1, objective="margin", interval=1), **training)
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
        ("off_policy_adversarial_training", "advantages"),
        ("noise_augmentation", "policy loss"),
        ("spectral_normalization", "an actor of its own.*regularizer that works through the loss"),
    ):
        with pytest.raises(ValueError, match=reason):
            dqn(make_regularizer(name))
