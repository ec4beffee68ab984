"""Our advantages and value targets, laid out as RLlib's rows, against those of RLlib's own connectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch
from torch import Tensor

from marl_aajr.core.distributions import Categorical
from marl_aajr.rllib.internals.runners import ordered
from marl_aajr.rllib.sampling.env import _flags, _stock_flags
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep
from marl_aajr.rollout.collector import Collector
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from marl_aajr.rollout.rollout_buffer import Decision
from tests.rllib.learners import build_learner, ppo_config
from tests.rllib.rllib_rows import stock_rows
from tests.rollout.toy_games import Circle, Scripted

STAGGERED = {"a": (3, "terminated"), "b": (5, "truncated"), "c": (7, "truncated")}
TOGETHER = {"a": (4, "truncated"), "b": (4, "truncated"), "c": (4, "truncated")}
MIXED = {"a": (4, "terminated"), "b": (4, "truncated"), "c": (4, "truncated")}


def scripted(endings: str) -> Scripted:
    return Scripted({"staggered": STAGGERED, "together": TOGETHER, "mixed": MIXED}[endings])


def circle(endings: str) -> Circle:
    return Circle({"staggered": STAGGERED, "together": TOGETHER, "mixed": MIXED}[endings])


class Drawn:
    """RolloutPolicies that draw from fixed logits of the observation."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def filter_obs(self, module: str, obs: Tensor, rows: Tensor | None) -> Tensor:
        return obs

    def act(self, module: str, obs: Tensor, mask: Tensor | None, rows: Tensor | None) -> Decision:
        kind = Categorical(3)
        inputs = torch.stack([obs[:, 0] * 0.1, obs[:, 1], obs[:, 0] * 0.0], 1)
        actions = kind.sample(inputs, generator=self.generator)
        return Decision(actions, actions, kind.log_prob(inputs, actions), inputs)

    def sequence_length(self, module: str) -> int | None:
        return None

    def begin_episodes(self, episode_over: Tensor) -> None:
        pass


class Told(BatchedEnv):
    """A batch that tells RLlib's episodes everything that it tells the collector."""

    def __init__(self, env: PettingZooBatch, *, terminate: bool) -> None:
        self.env = env
        vars(self).update({n: getattr(env, n) for n in BatchedEnv.__annotations__})
        self.flags = _stock_flags if terminate else _flags
        self.finished: list[MultiAgentEpisode] = []
        self.running = [self._begin() for _ in range(env.num_envs)]

    def _begin(self) -> MultiAgentEpisode:
        return ordered(MultiAgentEpisode(agent_to_module_mapping_fn=lambda *_: "m"))

    def _seen(self, obs: Mapping[str, Tensor], e: int) -> dict[str, Any]:
        return {a: obs[a][e].numpy() for a, acts in self.env.active.items() if acts[e]}

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        obs = self.env.reset(seed=seed)
        for e, episode in enumerate(self.running):
            episode.add_env_reset(observations=self._seen(obs, e))
        return obs

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        acted = self.env.active
        step = self.env.step(actions)
        for e, episode in enumerate(self.running):
            over = bool(step.episode_over[e])
            ended = {a for a in acted if step.terminations[a][e] or step.truncations[a][e]}
            obs = {a: step.final_obs[a][e].numpy() for a in acted if a in ended}
            obs |= {} if over else self._seen(step.obs, e)
            turn = GameStep(
                obs=obs,
                rewards={a: float(step.rewards[a][e]) for a in obs},
                terminations={a: bool(step.terminations[a][e]) for a in obs},
                truncations={a: bool(step.truncations[a][e]) for a in obs},
                infos={},
                over=over,
            )
            terminateds, truncateds = self.flags(turn)
            chosen = {a: int(actions[a][e]) for a in acted if acted[a][e]}
            logits = {a: {"action_logp": 0.0, "action_dist_inputs": np.zeros(3, np.float32)} for a in chosen}
            episode.add_env_step(
                observations=turn.obs,
                actions=chosen,
                rewards=turn.rewards,
                infos={},
                terminateds=terminateds,
                truncateds=truncateds,
                extra_model_outputs=logits,
            )
            if over:
                self.finished.append(episode)
                self.running[e] = self._begin()
                self.running[e].add_env_reset(observations=self._seen(step.obs, e))
        return step

    def chunks(self) -> list[MultiAgentEpisode]:
        """What RLlib's env runner would return now."""
        going, self.running = self.running, [episode.cut(len_lookback_buffer=1) for episode in self.running]
        chunks = [*self.finished, *(episode for episode in going if episode.env_t > 0)]
        self.finished = []
        for chunk in chunks:
            for agent, piece in list(chunk.agent_episodes.items()):
                if not piece:
                    del chunk.agent_episodes[agent]
        return [chunk.to_numpy() for chunk in chunks if len(chunk.agent_episodes)]

    @property
    def active(self) -> dict[str, Tensor]:
        return self.env.active

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return self.env.action_mask

    def state(self) -> Tensor:
        return self.env.state()

    def get_state(self) -> dict[str, Any]:
        return self.env.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.env.set_state(state)

    def close(self) -> None:
        self.env.close()


@pytest.mark.parametrize("terminate", [False, True], ids=["bootstrap", "terminal limits"])
@pytest.mark.parametrize("endings", ["staggered", "together", "mixed"])
@pytest.mark.parametrize("game", ["scripted", "circle"])
def test_rows_are_those_of_rllibs_connectors(game: str, endings: str, terminate: bool) -> None:
    spec = EnvironmentSpec(f"tests.rllib.test_stock_rows:{game}", {"endings": endings})
    env = Told(PettingZooBatch(spec, 3), terminate=terminate)
    collector = Collector(env, dict.fromkeys(env.possible_agents, "m"), Drawn())
    collector.reset(seed=0)
    learner = build_learner(
        ppo_config("m", gamma=0.9, lambda_=0.8),
        obs_space=gym.spaces.Box(-1.0, 99.0, (2,), np.float32),
        action_space=gym.spaces.Discrete(3),
    )
    critic = learner.module["m"].unwrapped().compute_values
    for steps in (1, 5, 4):
        fragment, _ = collector.collect(steps)
        if terminate:
            fragment = fragment.time_limits_terminate()
        ours = stock_rows([fragment], "m", lambda obs, _: critic({"obs": obs}), gamma=0.9, lambda_=0.8)
        chunks = env.chunks()
        assert bool(len(ours)) == bool(chunks), "with one step of turns, nothing has come of anything yet"
        if not chunks:
            continue
        theirs = stock_batch(learner, chunks)
        for name, value in (
            ("obs", ours.obs),
            ("actions", ours.actions),
            (Postprocessing.ADVANTAGES, ours.advantages),
            (Postprocessing.VALUE_TARGETS, ours.value_targets),
            ("loss_mask", ours.loss_mask),
        ):
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def stock_batch(learner: Any, episodes: list[MultiAgentEpisode]) -> Any:
    batch = learner._make_batch_if_necessary(training_data=TrainingData(episodes=episodes))
    assert isinstance(batch, MultiAgentBatch)
    return batch["m"]
