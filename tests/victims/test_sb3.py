"""Models of Stable-Baselines3 play, as victims, what they play by themselves."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from marl_aajr.core.distributions import DiagGaussian
from marl_aajr.evaluation import evaluate
from marl_aajr.rollout.adapters import to_pettingzoo
from marl_aajr.victims import Victim

pytestmark = pytest.mark.slow

CART, PENDULUM = "CartPole-v1", "Pendulum-v1"


class Fixed(gym.Env[Any, Any]):
    """Random observations of a space, for actions of another."""

    def __init__(self, observed: spaces.Space[Any], acts: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observed, acts
        observed.seed(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


class Doubled(BaseFeaturesExtractor):
    """A features extractor that nobody knows."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, observation_space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return 2 * observations


IMAGES = Fixed(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(3))
PARTS = Fixed(spaces.Box(-1.0, 1.0, (6,)), spaces.MultiDiscrete([3, 2]))
SHORT = {"n_steps": 32, "batch_size": 32}
OFF = {"learning_starts": 10, "buffer_size": 100, "policy_kwargs": {"net_arch": [8]}}


def env_of(env: str | gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return gym.make(env) if isinstance(env, str) else env


@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "settings"),
    [
        pytest.param(PPO, "MlpPolicy", CART, SHORT, id="ppo"),
        pytest.param(PPO, "MlpPolicy", PENDULUM, SHORT, id="ppo-box"),
        pytest.param(PPO, "MlpPolicy", PARTS, SHORT, id="ppo-multi"),
        pytest.param(PPO, "CnnPolicy", IMAGES, SHORT, id="ppo-images"),
        pytest.param(A2C, "MlpPolicy", CART, {}, id="a2c"),
        pytest.param(DQN, "MlpPolicy", CART, OFF, id="dqn"),
        pytest.param(SAC, "MlpPolicy", PENDULUM, OFF, id="sac"),
        pytest.param(TD3, "MlpPolicy", PENDULUM, OFF, id="td3"),
        pytest.param(RecurrentPPO, "MlpLstmPolicy", CART, SHORT, id="recurrent"),
    ],
)
def test_a_trained_model_and_its_victim_take_the_same_actions(
    algorithm: Any, policy: str, env: str | gym.Env[Any, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    own = deepcopy(settings)  # algorithms write into their policy_kwargs
    model = algorithm(policy, env_of(env), device="cpu", seed=0, **own).learn(40)
    game = to_pettingzoo(env_of(env))
    Victim.from_sb3(model, game).save(tmp_path / "victim")
    victim = Victim.load(tmp_path / "victim")
    (agent,) = victim.agents
    assert victim.greedy_only == (algorithm in (DQN, SAC, TD3))
    memory, state, obs = victim.memory(), None, game.reset(seed=1)[0]
    for step in range(20):
        wanted, state = model.predict(
            obs[agent], state=state, episode_start=np.array([step == 0]), deterministic=True
        )
        actions = victim.act(obs, memory=memory)
        np.testing.assert_allclose(actions[agent], wanted, rtol=1e-3, atol=1e-4)
        obs = game.step(actions)[0]
        if not obs or not game.agents:
            break


@pytest.mark.parametrize("env", [CART, PENDULUM])
def test_the_distribution_that_is_sampled_is_the_models(env: str) -> None:
    model = PPO("MlpPolicy", env_of(env), device="cpu", seed=0, **SHORT).learn(40)
    victim = Victim.from_sb3(model, to_pettingzoo(env_of(env)))
    (agent,) = victim.agents
    obs = torch.randn(5, *model.observation_space.shape)
    own, outputs = model.policy.get_distribution(obs).distribution, victim.policy(agent)(obs)
    if isinstance(kind := victim.distribution(agent), DiagGaussian):
        mean, log_std = kind.split(outputs)
        torch.testing.assert_close(mean, own.mean)
        torch.testing.assert_close(log_std.exp(), own.stddev)
    else:
        torch.testing.assert_close(outputs.log_softmax(-1), own.logits)
    critic = victim.policy(agent).critic
    assert critic is not None
    torch.testing.assert_close(critic(obs), model.policy.predict_values(obs).squeeze(-1))


def test_observations_go_through_vec_normalize() -> None:
    normalized = VecNormalize(DummyVecEnv([lambda: gym.make(CART)]), clip_obs=3.0)
    model = PPO("MlpPolicy", normalized, device="cpu", seed=0, **SHORT).learn(40)
    victim = Victim.from_sb3(model, to_pettingzoo(gym.make(CART)))
    obs = 5 * np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    seen = victim.inputs(victim.agents[0], torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(seen, normalized.normalize_obs(obs), rtol=1e-4, atol=1e-5)
    assert np.abs(seen).max() == 3.0


def test_one_model_plays_all_agents_and_is_attacked() -> None:
    game = simple_spread_v3.parallel_env(max_cycles=10)
    fixed = Fixed(game.observation_space("agent_0"), game.action_space("agent_0"))
    model = PPO("MlpPolicy", fixed, device="cpu", seed=0, **SHORT).learn(40)
    victim = Victim.from_sb3(model, game, env_name="simple_spread_v3", env_kwargs={"max_cycles": 10})
    assert victim.module_of == dict.fromkeys(game.possible_agents, "policy")
    assert evaluate(victim, attacks=[("pgd", 0.1)], episodes=4).worst is not None
    other = PPO("MlpPolicy", fixed, device="cpu", **SHORT)
    each = Victim.from_sb3({"agent_0": model, "agent_1": other, "agent_2": other}, game)
    assert each.module_of == {"agent_0": "agent_0", "agent_1": "agent_1", "agent_2": "agent_1"}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(lambda: PPO("MlpPolicy", PENDULUM, use_sde=True), "PPO with gSDE", id="gsde"),
        pytest.param(lambda: QRDQN("MlpPolicy", CART), "got QRDQN", id="quantiles"),
        pytest.param(
            lambda: PPO("MlpPolicy", CART, policy_kwargs={"features_extractor_class": Doubled}),
            "PPO with a Doubled",
            id="extractor",
        ),
        pytest.param(lambda: nn.Linear(4, 2), "got Linear", id="network"),
        pytest.param(lambda: "model.zip", r"PPO\.load\(path\) gives it, got str", id="file"),
    ],
)
def test_what_does_not_play_by_layers_is_refused(model: Any, why: str) -> None:
    env = to_pettingzoo(gym.make(PENDULUM if why.endswith("gSDE") else CART))
    with pytest.raises(ValueError, match=rf"^expected a model of Stable-Baselines3 .*{why}.*from_policies$"):
        Victim.from_sb3(model(), env)


def test_a_model_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected models of agents out of agent; got 'x'$"):
        Victim.from_sb3({"x": PPO("MlpPolicy", CART, device="cpu")}, to_pettingzoo(gym.make(CART)))


def test_a_model_handed_over_as_a_network_is_told_the_way() -> None:
    model, env = PPO("MlpPolicy", CART, device="cpu"), to_pettingzoo(gym.make(CART))
    for given in (model, model.policy):
        with pytest.raises(ValueError, match=r"^expected .* Victim\.from_sb3 takes whole models"):
            Victim.from_policies(given, env)
