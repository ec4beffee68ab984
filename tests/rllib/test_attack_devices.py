"""Rollouts under attack where the modules are: on the processor and on a GPU."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from marl_aajr import AAJR, robustify
from marl_aajr.rllib.playing_networks import LiveModule, playing_network
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from tests.rllib.fast_runs import OURS, config, fragment, runner
from tests.rllib.policy_modules import Custom
from tests.rllib.recorder import Recorder, chunks, runner_of, size
from tests.rllib.test_attacked_episodes import several
from tests.rllib.test_attacked_rollouts import moved, part_of

EPSILON = 0.1
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])


def attack(objective: str) -> RolloutAttack:
    """With all that is drawn: radii, steps, starts, and the rows that are measured."""
    drawn: dict[str, Any] = {"epsilon_draw": (0.5, 1.0), "attacked_steps": (4, 5), "gap_interval": 1}
    return RolloutAttack(epsilon=EPSILON, objective=objective, worst_agents=2, **drawn)


@DEVICES
@pytest.mark.parametrize("objective", ["margin", "kl"])
def test_rllibs_own_runners_are_attacked_on_any_device(objective: str, device: str) -> None:
    # Runner 0 is on the processor, whatever it is given.
    settings = {"num_gpus_per_env_runner": int(device == "cuda"), "rollout_fragment_length": 2}
    configured = robustify(several().env_runners(**settings), AAJR(), rollouts=attack(objective))
    found = []
    for _ in range(2):
        subject = runner_of(configured, index=1)
        assert next(subject.module["team"].parameters()).device.type == device
        recorder = Recorder(subject)
        parts = chunks(subject, num_timesteps=24)
        sizes = np.concatenate([size(one, recorder) for one in parts])
        assert sizes.max() <= EPSILON + 1e-5
        assert sizes[sizes > 0].min() >= 0.45 * EPSILON
        assert subject.metrics.peek(("marl_aajr", "attack", "strong_gain")) > 0
        found.append(np.concatenate([one.get_observations() for one in parts]))
    assert np.array_equal(found[0], found[1])


@DEVICES
@pytest.mark.parametrize("objective", ["margin", "kl"])
def test_fast_runners_are_attacked_on_any_device(objective: str, device: str) -> None:
    subject = runner(config(), OURS, rollouts=attack(objective), device=device)
    part = part_of(fragment(subject))
    assert part.obs.device.type == device
    sizes = moved(part)
    assert sizes.max() <= EPSILON + 1e-5
    assert sizes[sizes > 0].min() >= 0.45 * EPSILON
    assert subject._collector.attack_metrics["strong_gain"] > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("use_lstm", [False, True])
def test_layers_are_compared_with_their_module_on_its_own_device(
    use_lstm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On `meta`, which every machine has: it mixes with no other device, and holds no numbers to compare."""
    module = default_module(use_lstm=use_lstm).to("meta")
    compared: list[str] = []

    def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
        compared.extend([one.device.type, other.device.type])
        return True

    monkeypatch.setattr(torch, "equal", equal)
    assert not isinstance(playing_network(module), LiveModule)
    assert compared == ["meta", "meta"]


def test_a_module_that_reads_masks_is_told_on_its_own_device_that_all_is_legal() -> None:
    space = gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(3), "observations": BOX})
    module = MaskModule(observation_space=space, action_space=gym.spaces.Discrete(3)).to("meta")
    assert LiveModule(module)(torch.zeros(2, 5, device="meta")).device.type == "meta"


BOX = gym.spaces.Box(-1.0, 1.0, (5,))


def default_module(*, use_lstm: bool) -> Any:
    model = DefaultModelConfig(fcnet_hiddens=[8], use_lstm=use_lstm, lstm_cell_size=4)
    return RLModuleSpec(
        DefaultPPOTorchRLModule, BOX, gym.spaces.Discrete(3), model_config=model, catalog_class=PPOCatalog
    ).build()


class MaskModule(Custom):
    """Adds a number to legal logits."""

    def build_features(self) -> None:
        self.layer = nn.Linear(5, 8)

    def features(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        obs = batch[Columns.OBS]
        return self.layer(obs["observations"]) + obs["action_mask"].sum(-1, keepdim=True), {}
