"""An RLlib checkpoint as a victim, against RLlib's own way from observations to actions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpe2 import simple_spread_v3
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

from marl_aajr.evaluation import evaluate
from marl_aajr.rllib.playing_networks import LiveModule
from marl_aajr.rllib.victims import is_checkpoint, victim_from_checkpoint
from tests.rllib.victim_toys import Leaky, Shift

ENV = "mpe2.simple_spread_v3"
ARGUMENTS = {"max_cycles": 6}
MODULE_OF = {"agent_0": "plain", "agent_1": "lstm", "agent_2": "custom"}
SMALL: dict[str, Any] = {"fcnet_hiddens": [8], "max_seq_len": 3}


def config() -> PPOConfig:
    specs = {
        "plain": RLModuleSpec(model_config=DefaultModelConfig(**SMALL, vf_share_layers=False)),
        "lstm": RLModuleSpec(model_config=DefaultModelConfig(**SMALL, use_lstm=True, lstm_cell_size=5)),
        "custom": RLModuleSpec(module_class=Leaky, model_config=SMALL),
    }
    return (
        PPOConfig()
        .environment("spread_of_checkpoints", env_config=ARGUMENTS)
        .multi_agent(
            policies=set(specs),
            policy_mapping_fn=lambda agent, *_, **__: MODULE_OF.get(agent, "plain"),
            policies_to_train=["plain", "lstm"],
        )
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
        .env_runners(num_env_runners=0, env_to_module_connector=lambda *_: MeanStdFilter(multi_agent=True))
        .training(train_batch_size=60, minibatch_size=30, num_epochs=1, lr=0.01)
        .debugging(seed=0, log_level="ERROR")
    )


@pytest.fixture(scope="module")
def checkpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an algorithm that has trained for one iteration, and is gone."""
    register_env("spread_of_checkpoints", lambda c: ParallelPettingZooEnv(simple_spread_v3.parallel_env(**c)))
    algorithm = config().build_algo()
    algorithm.train()
    path = tmp_path_factory.mktemp("runs") / "checkpoint_000001"
    algorithm.save_to_path(path)
    algorithm.stop()
    return path


class RLlibsWay:
    """The pieces that RLlib's documentation puts together for inference, with the filter held still."""

    def __init__(self, path: Path) -> None:
        self.before = EnvToModulePipeline.from_checkpoint(path / "env_runner/env_to_module_connector")
        self.after = ModuleToEnvPipeline.from_checkpoint(path / "env_runner/module_to_env_connector")
        self.modules = MultiRLModule.from_checkpoint(path / "learner_group/learner/rl_module")
        [filter_] = [piece for piece in self.before.connectors if isinstance(piece, MeanStdFilter)]
        filter_._update_stats = False

    def begin(self, env: Any, obs: dict[str, Any]) -> None:
        self.episode = MultiAgentEpisode(
            observation_space={a: env.observation_space(a) for a in obs},
            action_space={a: env.action_space(a) for a in obs},
            agent_to_module_mapping_fn=lambda agent, *_, **__: MODULE_OF[agent],
        )
        self.episode.add_env_reset(observations=obs)

    @torch.no_grad()
    def act(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Greedy actions, and the states after them."""
        shared: dict[str, Any] = {}
        how: dict[str, Any] = {
            "episodes": [self.episode],
            "rl_module": self.modules,
            "explore": False,
            "shared_data": shared,
        }
        out = self.modules.forward_inference(self.before(batch={}, **how))
        self.found = self.after(batch=out, **how)
        return self.found[Columns.ACTIONS][0], self.found[Columns.STATE_OUT][0]

    def step(self, obs: dict[str, Any], rewards: dict[str, float], over: bool) -> None:
        names = (Columns.STATE_OUT, Columns.ACTION_DIST_INPUTS)
        extra: dict[str, dict[str, Any]] = {agent: {} for agent in obs}
        for name in names:
            for agent, value in self.found[name][0].items():
                extra[agent][name] = value
        self.episode.add_env_step(
            obs,
            self.found[Columns.ACTIONS][0],
            rewards,
            terminateds={"__all__": over},
            extra_model_outputs=extra,
        )


class TestPlaysAsInTraining:
    def test_with_its_filter_and_its_states_bit_for_bit(self, checkpoint: Path) -> None:
        victim = victim_from_checkpoint(checkpoint, env=ENV, env_kwargs=ARGUMENTS)
        theirs, env = RLlibsWay(checkpoint), simple_spread_v3.parallel_env(**ARGUMENTS)
        assert victim.module_of == MODULE_OF
        taken, rng = [], np.random.default_rng(0)
        for seed in range(3):
            obs, _ = env.reset(seed=seed)
            memory = victim.memory()
            theirs.begin(env, shown := _lies(obs, rng))
            while env.agents:
                actions = victim.act(shown, memory=memory)
                expected, states = theirs.act()
                assert actions == {agent: int(action) for agent, action in expected.items()}
                _assert_same_states(memory, states)
                taken.append(tuple(actions.values()))
                obs, rewards, *_ = env.step(actions)
                theirs.step(shown := _lies(obs, rng), rewards, not env.agents)
        assert len(set(taken)) > 6, "the policies must have had something to decide"

    def test_the_filters_are_those_of_the_agents_and_stand_still(self, checkpoint: Path) -> None:
        victim = victim_from_checkpoint(checkpoint, env=ENV, env_kwargs=ARGUMENTS)
        mean = {agent: observed.mean.clone() for agent, observed in victim.filters.items() if observed}
        assert len(mean) == 3
        assert not torch.equal(mean["agent_0"], mean["agent_1"])
        evaluate(victim, episodes=2)
        assert all(torch.equal(seen.mean, mean[agent]) for agent, seen in victim.filters.items() if seen)

    def test_attacks_run_on_it(self, checkpoint: Path) -> None:
        victim = victim_from_checkpoint(checkpoint, env=ENV, env_kwargs=ARGUMENTS)
        result = evaluate(victim, attacks=[("fgsm", 0.5), ("pgd", 0.5)], episodes=4, units="raw")
        assert all(row.objective_gain > 0 for row in result.attacks)

    def test_one_agent_has_the_one_module(self, tmp_path: Path, ray_session: None) -> None:
        config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
        algo = config.build_algo()
        algo.save_to_path(tmp_path)
        module: Any = algo.get_module()
        algo.stop()
        victim = victim_from_checkpoint(tmp_path, env="CartPole-v1")
        seen = torch.rand(5, 4) - 0.5
        expected = module.forward_inference({"obs": seen})["action_dist_inputs"].argmax(dim=1)
        assert [victim.act({"agent": row})["agent"] for row in seen.numpy()] == expected.tolist()
        assert evaluate(victim, episodes=2).clean_return > 0

    def test_the_live_part_of_it_cannot_be_saved_and_says_so(self, checkpoint: Path, tmp_path: Path) -> None:
        victim = victim_from_checkpoint(checkpoint, env=ENV, env_kwargs=ARGUMENTS)
        live = [name for name, network in victim.modules.items() if isinstance(network, LiveModule)]
        assert live == ["custom"]
        with pytest.raises(ValueError, match="expected layers out of"):
            victim.save(tmp_path / "victim")


class TestRefused:
    def test_folders_that_are_no_checkpoint(self, checkpoint: Path, tmp_path: Path) -> None:
        assert is_checkpoint(checkpoint)
        with pytest.raises(
            ValueError, match=r"expected a checkpoint of an RLlib algorithm.*rllib_checkpoint"
        ):
            victim_from_checkpoint(tmp_path, env=ENV)
        with pytest.raises(ValueError, match=r"there is .*checkpoint_000001"):
            victim_from_checkpoint(checkpoint.parent, env=ENV)

    def test_the_old_stack(self, tmp_path: Path) -> None:
        (tmp_path / "rllib_checkpoint.json").write_text('{"checkpoint_version": "1.1"}')
        with pytest.raises(ValueError, match="new API stack"):
            victim_from_checkpoint(tmp_path, env=ENV)

    def test_another_format(self, checkpoint: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        (copy / "class_and_ctor_args.pkl").unlink()
        with pytest.raises(ValueError, match="without use_msgpack"):
            victim_from_checkpoint(copy, env=ENV)

    def test_an_environment_of_other_spaces(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match=r"module 'plain' to read the observations .* of 'agent_0'"):
            victim_from_checkpoint(checkpoint, env=ENV, env_kwargs={"N": 2})

    def test_an_environment_of_other_agents(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match=r"expected an environment of agent_0, .* got 'agent_3'"):
            victim_from_checkpoint(checkpoint, env=ENV, env_kwargs={"N": 4})

    def test_connectors_that_a_victim_does_not_have(self, checkpoint: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        folder = copy / "env_runner/env_to_module_connector"
        shutil.rmtree(folder)
        EnvToModulePipeline(connectors=[Shift()]).save_to_path(folder)
        with pytest.raises(ValueError, match=r"expected no connector .*got Shift"):
            victim_from_checkpoint(copy, env=ENV)


def _lies(obs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {agent: (row + rng.normal(0, 5, row.shape)).astype(row.dtype) for agent, row in obs.items()}


def _assert_same_states(memory: Any, states: dict[str, Any]) -> None:
    here = torch.tensor([0])
    h, c = memory.recall({"agent_1": here})[0]
    np.testing.assert_array_equal(h[0].numpy(), states["agent_1"]["h"])
    np.testing.assert_array_equal(c[0].numpy(), states["agent_1"]["c"])
    trace = memory.recall({"agent_2": here})["trace"]
    np.testing.assert_array_equal(trace[0].numpy(), states["agent_2"]["trace"])
    assert memory.recall({"agent_0": here}) is None
