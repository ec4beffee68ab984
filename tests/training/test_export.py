"""A victim acts exactly as its policy did in RLlib's env runner, filter included."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from torch import nn

from marl_aajr.rllib.victims import victim_from_checkpoint
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.export import export_victim
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.victims import Victim
from tests.training.runs import tiny

pytestmark = pytest.mark.usefixtures("ray_session")


class Recorder(ConnectorV2):
    """Notes what passes by, per episode and agent; stands at one end of a pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, str], list[Any]] = defaultdict(list)


class RawObservations(Recorder):
    """What the environment said, before any filter."""

    def __call__(self, *, batch: Any, episodes: Any, **_: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            key = (episode.multi_agent_episode_id, episode.agent_id)
            self.seen[key].append(episode.get_observations(-1))
        return batch


class SentActions(Recorder):
    """What the environment was told, after RLlib's mapping of Box actions."""

    def __call__(self, *, batch: Any, episodes: Any, **_: Any) -> Any:
        for episode, actions in zip(episodes, batch[Columns.ACTIONS_FOR_ENV], strict=True):
            for agent, action in actions.items():
                self.seen[episode.id_, agent].append(action)
        return batch


def split(obs: Any) -> tuple[Any, Any]:
    return (obs["observation"], obs.get("action_mask")) if isinstance(obs, dict) else (obs, None)


SPREAD = {"name": "simple_spread_v3", "kwargs": {"N": 2}}
CONTINUOUS = {"name": "simple_spread_v3", "kwargs": {"N": 2, "continuous_actions": True}}


@pytest.mark.parametrize(
    "changes",
    [
        {"env": CONTINUOUS, "observation_filter": "mean_std"},
        {
            "env": CONTINUOUS,
            "model": {"hidden": [9, 7], "free_log_std": True, "activation": "relu"},
            "policies": "independent",
        },
        {"env": {"name": "pettingzoo.classic.connect_four_v3"}},
        {"env": SPREAD, "observation_filter": "mean_std", "model": {"critic": "state"}},
        {"env": SPREAD, "observation_filter": "mean_std", "model": {"lstm": 5, "sequence_length": 7}},
    ],
    ids=["continuous", "free-log-std", "action-mask", "centralised", "lstm"],
)
def test_the_victim_repeats_what_the_env_runner_recorded(changes: dict[str, Any], tmp_path: Path) -> None:
    batch = {"train_batch_size": 20, "minibatch_size": 20, "epochs": 1}
    config = tiny(**changes, ppo=batch, resources={"runner": "stock"})
    algorithm = build_config(config).build_algo()
    try:
        algorithm.train()
        mapping = policy_mapping_of(config)
        export_victim(algorithm, config, mapping, tmp_path / "victim")
        raw, sent, runner = RawObservations(), SentActions(), algorithm.env_runner
        runner._env_to_module.prepend(raw)
        runner._module_to_env.append(sent)
        if (normalizer := algorithm.env_runner.normalizer) is not None:
            normalizer.frozen = True
        episodes = runner.sample(num_timesteps=60, explore=False, force_reset=True)
        runner._env_to_module.remove("RawObservations")
        algorithm.save_to_path(tmp_path / "checkpoint")
    finally:
        algorithm.stop()
    compare(Victim.load(tmp_path / "victim"), episodes, raw, sent)
    env, arguments = config.env.name, config.env.kwargs
    restored = victim_from_checkpoint(tmp_path / "checkpoint", env=env, env_kwargs=arguments)
    compare(restored, episodes, raw, sent)


def answers(victim: Victim, agent: str, inputs: torch.Tensor, legal: torch.Tensor | None) -> torch.Tensor:
    """What the victim says in one episode: all at once, or one after the other where it remembers."""
    if not victim.recurrent:
        return victim.policy(agent, action_mask=legal)(inputs)
    memory, here, found = victim.memory(), {agent: torch.tensor([0])}, []
    for row in inputs.split(1):
        policy = victim.policy(agent, state=memory.recall(here))
        found.append(policy(row))
        memory.advance(here, policy.next_state(row))
    return torch.cat(found)


def compare(victim: Victim, episodes: list[Any], raw: Recorder, sent: Recorder) -> None:
    compared = 0
    for episode in episodes:
        for agent, played in episode.agent_episodes.items():
            outputs = torch.tensor(np.array(played.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)))
            key = (episode.id_, agent)
            observations, masks = zip(*map(split, raw.seen[key][: len(outputs)]), strict=True)
            legal = None if masks[0] is None else torch.tensor(np.array(masks)).bool()
            inputs = victim.inputs(agent, torch.tensor(np.array(observations)))
            # RLlib's batches had other sizes, and matrix products of other sizes round differently.
            got = answers(victim, agent, inputs, legal)
            torch.testing.assert_close(got, outputs, rtol=1e-5, atol=1e-6)
            seen, _ = split(played.get_observations())
            assert torch.equal(inputs, torch.tensor(seen[: len(outputs)]).float().flatten(1))
            actions = torch.tensor(np.array(sent.seen[key][: len(outputs)]))
            assert torch.equal(victim.greedy(agent, outputs), actions)
            compared += len(outputs)
    assert compared >= 50


def test_a_module_that_differs_is_refused(tmp_path: Path) -> None:
    config = tiny()
    algorithm = build_config(config).build_algo()
    try:
        module = algorithm.env_runner.module["agent"].unwrapped()
        module.pi.net.mlp.append(nn.Dropout(0.5))
        with pytest.raises(ValueError, match="expected layers out of"):
            export_victim(algorithm, config, policy_mapping_of(config), tmp_path / "victim")
    finally:
        algorithm.stop()
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("env", ["simple_spread_v3", "pettingzoo.classic.connect_four_v3"])
def test_the_critic_of_ones_own_observation_goes_along(env: str, tmp_path: Path) -> None:
    config = tiny(env={"name": env})
    algorithm = build_config(config).build_algo()
    try:
        mapping = policy_mapping_of(config)
        victim = export_victim(algorithm, config, mapping, tmp_path / "victim")
        (learner,) = (result.get() for result in algorithm.learner_group.foreach_learner(lambda x: x))
        for name, agent in mapping.modules.items():
            obs = torch.rand(5, *victim.observation_spaces[agent].shape)
            masked = {"observation": obs, "action_mask": torch.ones(5, 7)} if "four" in env else obs
            expected = learner.module[name].unwrapped().compute_values({Columns.OBS: masked})
            critic = victim.policy(agent).critic
            assert critic is not None
            torch.testing.assert_close(critic(obs.flatten(1)), expected)
    finally:
        algorithm.stop()
