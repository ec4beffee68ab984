"""The worst k agents in play: in the fast runner and in RLlib's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch import Tensor

from marl_aajr import AAJR, robustify
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.policy import ModulePolicy
from marl_aajr.rllib.internals.modules import plain_actor
from marl_aajr.rllib.sampling.env import PettingZooEnv
from marl_aajr.rllib.sampling.module_policies import ModulePolicies
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import objective_gain
from tests.rllib.fast_runs import OURS, TAG, by_side, config, fragment, runner
from tests.rllib.recorder import Recorder, chunks, key, runner_of, size
from tests.rllib.test_attacked_episodes import several, single
from tests.rllib.test_attacked_rollouts import moved, part_of

EPSILON = 0.2


def gains(module: Any, clean: Tensor, attack: RolloutAttack) -> Tensor:
    """What the attack gains on each observation, `[..., d] -> [...]`."""
    layers = plain_actor(module)
    assert layers is not None
    policy, rows = ModulePolicy(layers, Categorical(5)), clean.flatten(0, -2)
    found = attack.perturb(policy, rows, epsilon=EPSILON, generator=torch.Generator())
    return objective_gain(attack.adversary, policy, rows, found).view(clean.shape[:-1])


@pytest.mark.parametrize(("modules", "env"), [(("agent",), OURS), (("adversary", "agent"), TAG)])
def test_only_those_whose_objective_rises_most_see_anything_else(modules: Any, env: str) -> None:
    """Of all modules together, in every step and copy, and when the sample ends."""
    attack = RolloutAttack(epsilon=EPSILON, worst_agents=2, path="one")
    subject = runner(config(*modules), env, rollouts=attack)
    parts = fragment(subject).modules
    clean = {m: part.clean_obs for m, part in parts.items() if part.clean_obs is not None}
    hit = torch.cat([(part.obs - clean[m]).abs().amax(-1) > 0 for m, part in parts.items()], 1)
    assert (hit.sum(1) == 2).all()
    assert hit.any(0).any(-1).sum() > 2, "others at other times"
    gain = torch.cat([gains(subject.module[m], obs, attack) for m, obs in clean.items()], 1)
    least, most = gain.where(hit, torch.inf).amin(1), gain.where(~hit, -torch.inf).amax(1)
    assert (least >= most - 1e-4).all()
    paths = [part.path for part in parts.values() if part.path is not None]
    follows = torch.cat([path[:-1, :, :, 1].abs().sum((-1, -2)) > 0 for path in paths], 1)
    assert torch.equal(follows, hit[:-1])


@pytest.mark.parametrize("lstm", [False, True])
def test_ends_of_episodes_are_ranked_over_all_modules_too(lstm: bool, monkeypatch: Any) -> None:
    model = DefaultModelConfig(use_lstm=True, max_seq_len=5, lstm_cell_size=8) if lstm else None
    configured = config("adversary", "agent", steps=30)
    configured = configured if model is None else configured.rl_module(model_config=model)
    subject = runner(configured, TAG, rollouts=RolloutAttack(epsilon=EPSILON, worst_agents=1, share=0.75))
    true: dict[str, Tensor] = {}

    def note(_: Any, module: str, obs: Tensor, __: Tensor | None) -> Tensor:
        true[module] = obs  # the last ones are those of the episodes that ended
        return obs

    monkeypatch.setattr(ModulePolicies, "filter_obs", note)
    parts = fragment(subject).modules
    assert all((part.final_at[:, 0] == 24).all() for part in parts.values())
    hit = torch.cat([((p.final_obs - true[m]).abs().amax(-1) > 0).view(-1, 4) for m, p in parts.items()])
    assert hit.sum(0).tolist() == [1, 1, 1, 0]
    assert (torch.cat([moved(part) > 0 for part in parts.values()], 1).sum(1)[:, :3] == 1).all()


def test_a_budget_of_steps_and_names_narrow_the_choice() -> None:
    names = ("agent_0", "agent_2")
    attack = RolloutAttack(epsilon=EPSILON, worst_agents=1, agents=names, attacked_steps=(2, 5))
    (part,) = fragment(runner(config(), OURS, rollouts=attack)).modules.values()
    hit = moved(part) > 0
    assert not hit[:, 1].any()
    assert (hit.sum(1).view(2, 5, 4).sum(1) == 2).all()
    assert hit.sum(1).max() == 1


def test_measures_are_of_those_who_were_attacked() -> None:
    attack = RolloutAttack(epsilon=EPSILON, worst_agents=1, gap_interval=1)
    subject = runner(config(), OURS, rollouts=attack)
    (part,) = fragment(subject).modules.values()
    assert part.clean_obs is not None
    found = subject._collector.attack_metrics  # type: ignore[union-attr]
    largest = gains(subject.module["agent"], part.clean_obs[:-1], attack).amax(1)
    assert found["rows"] == 40
    assert found["gain"] == pytest.approx(float(largest.sum()), rel=1e-3)
    assert found["strong_gain"] >= found["trained_gain"] > 0


def two_modules() -> PPOConfig:
    return (
        PPOConfig()
        .environment(PettingZooEnv, env_config={"env": TAG})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .multi_agent(policies={"adversary", "agent"}, policy_mapping_fn=by_side)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .debugging(seed=0)
    )


@pytest.mark.parametrize("configure", [several, two_modules])
def test_rllibs_own_runners_choose_the_same_way(configure: Any) -> None:
    attack = RolloutAttack(epsilon=EPSILON, worst_agents=1)
    subject = runner_of(robustify(configure(), AAJR(), rollouts=attack))
    recorder = Recorder(subject)
    sizes: dict[Any, np.ndarray] = {}
    best: dict[Any, np.ndarray] = {}
    for one in chunks(subject, num_timesteps=24):
        episode, agent = key(one)
        clean = torch.as_tensor(np.stack(recorder.true[key(one)][: len(one) + 1]))
        sizes[episode, agent] = size(one, recorder)
        best[episode, agent] = gains(subject.module[one.module_id], clean, attack).numpy()
    for episode in {episode for episode, _ in sizes}:
        hit = np.stack([far > 0 for (e, _), far in sizes.items() if e == episode])
        gain = np.stack([rise for (e, _), rise in best.items() if e == episode])
        assert (hit.sum(0) == 1).all()
        assert (np.where(hit, gain, -np.inf).max(0) >= gain.max(0) - 1e-4).all()


@pytest.mark.usefixtures("ray_session")
def test_whom_nobody_can_choose_among_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ValueError, match="expected worst_agents smaller than 3"):
        runner(config(), OURS, rollouts=RolloutAttack(worst_agents=3))
    with pytest.raises(ValueError, match="expected worst_agents smaller than 3"):
        robustify(several(), None, rollouts=RolloutAttack(worst_agents=3)).build_algo()
    with pytest.raises(ValueError, match="expected no worst_agents in a single-agent environment, got 1"):
        robustify(single(), None, rollouts=RolloutAttack(worst_agents=1)).build_algo()


def test_the_same_seed_chooses_the_same_agents() -> None:
    attack = RolloutAttack(epsilon=EPSILON, objective="kl", worst_agents=1, attacked_steps=(2, 5))
    subject = runner(config(), OURS, rollouts=attack)
    found = []
    for _ in range(2):
        subject.start_afresh(seed=5)
        found.append([part_of(fragment(subject)).obs for _ in range(2)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
