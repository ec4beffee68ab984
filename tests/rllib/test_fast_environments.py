"""PettingZoo's own environments of every kind, through the fast runner and one update of the learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData

from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.fast import FragmentsToBatch
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import make_config

FALLS = {"max_cycles": 60, "terminate_on_fall": False, "remove_on_fall": True}
ENVIRONMENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "collect_treasure": ("mpe2.collect_treasure_v1", {"max_cycles": 10}, {}),
    "formation": ("mpe2.simple_formation_v1", {}, {"observation_filter": "mean_std"}),
    "line": ("mpe2.simple_line_v1", {"continuous_actions": True}, {}),
    "pursuit": ("sisl/pursuit-v5", {"max_cycles": 12, "n_pursuers": 3}, {"observation_filter": "mean_std"}),
    "walkers that fall": ("sisl/multiwalker-v9", FALLS, {"method": {"name": "aajr"}}),
    "connect four": ("classic/connect_four-v3", {}, {"policies": "independent"}),
    "leduc": ("classic/leduc_holdem-v4", {}, {"method": {"name": "aajr"}}),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_is_sampled_and_learned_from(name: str) -> None:
    environment, kwargs, settings = ENVIRONMENTS[name]
    sizes = {"train_batch_size": 120, "minibatch_size": 64, "epochs": 1}
    small = {"model": {"hidden": [8]}, "ppo": sizes, "resources": {"envs_per_runner": 4}}
    config = build_config(make_config({"env": {"name": environment, "kwargs": kwargs}, **small, **settings}))
    runner = FastEnvRunner(config=config, worker_index=0)
    (fragment,) = runner.sample()
    assert fragment.env_steps() == 120

    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces())
    learner = config.learner_class(config=config, module_spec=spec)
    learner.build()
    rows = FragmentsToBatch(gamma=0.9, lambda_=0.9)(rl_module=learner.module, batch={}, episodes=[fragment])
    before = {n: {k: v.clone() for k, v in learner.module[n].state_dict().items()} for n in rows}
    learner.update(
        training_data=TrainingData(episodes=[fragment]),
        timesteps={"num_env_steps_sampled_lifetime": 120},
        num_epochs=1,
        minibatch_size=64,
    )

    assert set(rows) == set(fragment.modules)
    for module, part in fragment.modules.items():
        acted = part.acts[:-1] if part.acts is not None else torch.ones_like(part.terminated)
        # The last decision of each agent in a copy may still be open.
        still_open = int(acted.sum()) - len(rows[module]["actions"])
        assert 0 <= still_open <= len(part.agents) * fragment.num_envs
        assert all(rows[module][column].isfinite().all() for column in ("advantages", "value_targets"))
        if part.mask is not None:
            assert part.mask[:-1].gather(-1, part.actions[..., None])[..., 0][acted].all()
        after = learner.module[module].state_dict()
        assert any(not torch.equal(value, before[module][key]) for key, value in after.items())
        assert all(value.isfinite().all() for value in after.values())


def test_walkers_that_have_fallen_are_in_no_row() -> None:
    environment, kwargs, _ = ENVIRONMENTS["walkers that fall"]
    resources = {"envs_per_runner": 8}
    config = build_config(
        make_config({"env": {"name": environment, "kwargs": kwargs}, "resources": resources})
    )
    (fragment,) = FastEnvRunner(config=config, worker_index=0).sample(num_timesteps=8 * 59)
    (part,) = fragment.modules.values()
    assert part.acts is not None
    fallen = part.terminated.cumsum(0) > 0
    assert fallen.any()
    waits = fallen[:-1] & ~fragment.episode_over.cumsum(0).bool()[:-1].unsqueeze(1)
    assert waits.any()
    assert not part.acts[1:-1][waits].any()
