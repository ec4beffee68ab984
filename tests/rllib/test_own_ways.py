"""RLlib in environments with ways of their own: agents' keys, masks in infos and in Dicts, connectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.utils import BaseParallelWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from marl_aajr import AAJR, evaluate, fast, register, robustify
from marl_aajr.rllib import victim_from_checkpoint
from marl_aajr.rllib.networks import FlatActorCritic
from marl_aajr.rllib.plugin.observation_layout import check_masks, flat_layout
from tests.own_ways import AGENTS, NAME, PLAYED

PENALTY = AAJR(coefficient=1e-3, epsilon=0.1)
HERE = "tests.rllib.test_own_ways"


class Masked(BaseParallelWrapper[Any, Any, Any]):
    """simple_spread whose observations stand beside a mask; the first action is illegal."""

    def __init__(self, key: str, dtype: Any) -> None:
        super().__init__(simple_spread_v3.parallel_env(max_cycles=10))
        self.key, self.dtype = key, dtype

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        mask = spaces.Box(0, 1, (5,), self.dtype)
        return spaces.Dict({"action_mask": mask, self.key: self.env.observation_space(agent)})

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = self.env.reset(seed=seed)
        return self._told(obs), infos

    def step(self, actions: Any) -> Any:
        PLAYED.extend((int(action),) for action in actions.values())
        obs, *rest = self.env.step(actions)
        return self._told(obs), *rest

    def _told(self, obs: Any) -> Any:
        legal = np.array([0, 1, 1, 1, 1], self.dtype)
        return {agent: {"action_mask": legal, self.key: own} for agent, own in obs.items()}


def pettingzoos() -> Masked:
    """With PettingZoo's key."""
    return Masked("observation", np.int8)


def rllibs() -> Masked:
    """With the key of RLlib's example, whose module reads floats."""
    return Masked("observations", np.float32)


def config(environment: str, *modules: str, **kwargs: Any) -> PPOConfig:
    return (
        PPOConfig()
        .environment(register(environment, kwargs=kwargs), disable_env_checking=True)
        .multi_agent(policies=set(modules), policy_mapping_fn=lambda *_, **__: modules[0])
        .training(train_batch_size=40, minibatch_size=20, num_epochs=1)
        .env_runners(num_env_runners=0)
        .debugging(seed=0, log_level="ERROR")
    )


def spec(module: type[Any]) -> RLModuleSpec:
    return RLModuleSpec(module_class=module, model_config={"fcnet_hiddens": [8]})


def flatten(env: Any, spaces: Any, device: Any) -> Any:
    return FlattenObservations(multi_agent=True)


@pytest.mark.parametrize(
    ("runner", "way"),
    [
        ("fast", {"agents": "tuples", "masks": True}),
        ("RLlib's", {"agents": "enums", "masks": True, "acts": "multi", "start": 2}),
        ("fast", {"agents": "enums", "masks": True, "acts": "multi", "start": 2}),
        ("RLlib's", {"agents": "integers", "dtype": "float16", "start": 3, "form": "list"}),
    ],
    ids=str,
)
def test_training_in_own_ways(ray_session: None, runner: str, way: dict[str, Any], tmp_path: Path) -> None:
    ids = AGENTS[way["agents"]]
    asked = config(NAME, "p0", "p1", **way).multi_agent(
        policy_mapping_fn=lambda agent, *_, **__: f"p{ids.index(agent)}"
    )
    if "masks" in way:
        asked.rl_module(rl_module_spec=spec(FlatActorCritic))
    asked = robustify(asked, PENALTY)
    algo = (fast(asked, NAME, kwargs=way) if runner == "fast" else asked).build_algo()
    PLAYED.clear()
    result = algo.train()["learners"]
    assert all(result[module]["aajr"]["penalty"] > 0 for module in ("p0", "p1"))
    assert {first for first, *_ in PLAYED} == ({1, 2} if "masks" in way else {0, 1, 2})
    if runner != "fast":
        algo.save_to_path(tmp_path)
        victim = victim_from_checkpoint(tmp_path, env=NAME, env_kwargs=way)
        assert list(victim.module_of.values()) == ["p0", "p1"]
        assert evaluate(victim, NAME, env_kwargs=way, attacks=[("fgsm", 0.1)], episodes=1).clean_return == 20
    algo.stop()


@pytest.mark.parametrize("runner", ["RLlib's", "fast"])
def test_a_module_finds_its_keys_in_a_dict(ray_session: None, runner: str, tmp_path: Path) -> None:
    asked = config(f"{HERE}:rllibs", "p").rl_module(rl_module_spec=spec(ActionMaskingTorchRLModule))
    asked = robustify(asked, PENALTY)
    algo = (fast(asked, f"{HERE}:rllibs") if runner == "fast" else asked).build_algo()
    PLAYED.clear()
    assert algo.train()["learners"]["p"]["aajr"]["penalty"] > 0
    algo.save_to_path(tmp_path)
    algo.stop()
    victim = victim_from_checkpoint(tmp_path, env=f"{HERE}:rllibs")
    evaluate(victim, f"{HERE}:rllibs", attacks=[("fgsm", 0.1)], episodes=1)
    assert (0,) not in PLAYED


def test_a_flattened_mask_is_never_perturbed(ray_session: None, tmp_path: Path) -> None:
    asked = config(f"{HERE}:pettingzoos", "p").env_runners(env_to_module_connector=flatten)
    algo = robustify(asked, PENALTY).build_algo()
    learner = algo.learner_group._learner
    layout = learner._regularized["p"]._flattened
    assert layout.places.tolist() == list(range(5, 23))
    assert algo.train()["learners"]["p"]["aajr"]["penalty"] > 0
    algo.save_to_path(tmp_path)
    module = learner.module["p"].unwrapped()
    algo.stop()
    victim = victim_from_checkpoint(tmp_path, env=f"{HERE}:pettingzoos")
    obs, legal = torch.randn(3, 18), torch.tensor([[False, True, True, True, True]] * 3)
    seen = torch.cat([legal.float(), obs], 1)
    expected = module.forward_inference({"obs": seen})["action_dist_inputs"]
    got = victim.policy("agent_0", action_mask=legal)(obs)
    assert torch.equal(got[legal], expected[legal])
    PLAYED.clear()
    evaluate(victim, f"{HERE}:pettingzoos", attacks=[("pgd", 0.1)], episodes=1)
    assert (0,) not in PLAYED


class TestLayouts:
    ACTIONS = spaces.Discrete(3)
    SEEN = spaces.Box(-1, 1, (2,), np.float32)

    def test_one_hots_and_integers_are_fixed(self) -> None:
        structure = {"cell": spaces.Discrete(4), "count": spaces.Box(0, 9, (1,), np.int64), "seen": self.SEEN}
        layout = flat_layout(7, [structure], leaves=None, actions=self.ACTIONS)
        assert layout is not None
        assert layout.places.tolist() == [5, 6]
        obs = torch.arange(7.0)[None]
        moved = layout.merge(layout.flatten(obs) + 10, layout.rest(obs))
        assert moved.tolist() == [[0, 1, 2, 3, 4, 15, 16]]

    def test_what_can_be_perturbed_is_as_it_was(self) -> None:
        assert flat_layout(4, [(self.SEEN, self.SEEN)], leaves=None, actions=self.ACTIONS) is None

    def test_of_one_hots_alone_nothing_may_be_perturbed(self) -> None:
        layout = flat_layout(7, [spaces.MultiDiscrete([3, 4])], leaves=None, actions=self.ACTIONS)
        assert layout is not None
        assert layout.places.tolist() == []

    def test_what_cannot_be_followed_is_asked_for(self) -> None:
        with pytest.raises(ValueError, match=r"say it: mask=\[True, False, ...\]"):
            flat_layout(7, [{"a": self.SEEN, "action_mask": self.SEEN}], leaves=None, actions=self.ACTIONS)

    def test_what_may_be_a_mask_is_asked_for(self) -> None:
        legal = spaces.Box(0, 1, (3,), np.float32)
        space = spaces.Dict({"legal_moves": legal, "seen": self.SEEN})
        with pytest.raises(ValueError, match=r"whether 'legal_moves' says which actions are legal.*leaves="):
            check_masks(space, None, self.ACTIONS)
        check_masks(space, ["seen"], self.ACTIONS)
        check_masks(legal, None, self.ACTIONS)
