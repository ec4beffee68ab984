"""Rollouts under attack in the fast runner: what is seen, acted on, kept and valued."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from marl_aajr import AAJR, OffPolicyAdversarialTraining, robustify
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.policy import map_tree
from marl_aajr.rllib.networks import FlatActorCritic, MAPPOModule
from marl_aajr.rllib.plugin.module_policy import CLEAN_OBS
from marl_aajr.rllib.sampling.acting_policy import ActingModule, ActingPolicy, HeldColumns
from marl_aajr.rllib.sampling.fast import FragmentsToBatch, fast
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.fragments import Fragment, ModuleFragment
from marl_aajr.rollout.postprocessing import standardize
from tests.rllib.fast_runs import OURS, TAG, TICTACTOE, config, fragment, logits, masked, normalizer, runner

EPSILON = 0.1


def part_of(sampled: Fragment, module: str = "agent") -> ModuleFragment:
    return sampled.modules[module]


def moved(part: ModuleFragment) -> Tensor:
    """How far each decision's observation is from the clean one, in L∞, `[T, G, E]`."""
    assert part.clean_obs is not None
    return (part.obs - part.clean_obs).abs().amax(-1)[: part.steps]


def same(one: Fragment, other: Fragment) -> bool:
    names = ("obs", "actions", "log_probs", "rewards", "inputs")
    pairs = ((one.modules[m], other.modules[m], name) for m in one.modules for name in names)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b, name in pairs)


def test_agents_act_on_what_the_adversary_shows_and_that_is_what_is_kept() -> None:
    subject = runner(config(), OURS, rollouts=RolloutAttack(epsilon=EPSILON))
    part = part_of(fragment(subject))
    inputs = logits(subject, "agent", part.obs[:-1])
    assert torch.allclose(inputs, part.inputs, atol=1e-5)
    assert torch.allclose(Categorical(5).log_prob(inputs, part.actions), part.log_probs, atol=1e-5)
    assert torch.allclose(moved(part), torch.tensor(EPSILON), atol=1e-5)
    assert part.clean_obs is not None
    clean = logits(subject, "agent", part.clean_obs[:-1])
    best = clean.argmax(-1, keepdim=True)
    lead = [y.scatter(-1, best, -torch.inf).amax(-1) - y.gather(-1, best)[..., 0] for y in (clean, inputs)]
    assert (lead[1] >= lead[0]).float().mean() > 0.95


def test_a_share_of_the_copies_is_attacked_and_the_others_see_the_truth() -> None:
    attack = RolloutAttack(epsilon=EPSILON, share=0.5, agents=("agent_0", "agent_2"))
    part = part_of(fragment(runner(config(), OURS, rollouts=attack)))
    size = moved(part)
    assert (size[:, [0, 2], :2] > 0.09).all()
    assert (size[:, 1] == 0).all()
    assert (size[:, :, 2:] == 0).all()


def test_without_anybody_under_attack_nothing_changes() -> None:
    plain = fragment(runner(config(), OURS))
    later = RolloutAttack(epsilon=[[0, 0], [100, 0], [101, 0.1]])  # type: ignore[arg-type]
    for attack in (None, RolloutAttack(share=0.0), RolloutAttack(epsilon=0.0), later):
        other = fragment(runner(config(), OURS, rollouts=attack))
        assert same(plain, other)
    assert part_of(other).clean_obs is None


def test_the_same_seed_is_the_same_attack_and_every_sample_draws_anew() -> None:
    attack = RolloutAttack(objective="kl", epsilon_draw=(0.2, 1.0), attacked_steps=(2, 5))
    first, second, other = (runner(config(seed=seed), OURS, rollouts=attack) for seed in (0, 0, 1))
    for _ in range(2):
        assert same(one := fragment(first), fragment(second))
    assert not same(one, fragment(other))
    first.start_afresh(seed=5)
    again = fragment(first)
    first.start_afresh(seed=5)
    assert same(again, fragment(first))


def test_epsilon_is_in_the_environments_units_behind_a_filter() -> None:
    configured = config().env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, OURS, rollouts=RolloutAttack(epsilon=EPSILON))
    part, filtered = part_of(fragment(subject)), subject.normalizer
    assert filtered is not None
    assert part.clean_obs is not None
    moments = filtered.total["agent"]
    assert moments.count == 11 * 12  # clean observations alone are counted
    scale = torch.as_tensor(moments.std) + 1e-6
    last = (part.obs - part.clean_obs)[part.steps - 1].abs() * scale
    inside = (part.obs[part.steps - 1].abs() < 9.99).all(-1)
    assert torch.allclose(last[inside].amax(-1), torch.tensor(EPSILON), rtol=0.2)


def test_behind_a_filter_that_has_seen_nothing_nobody_is_attacked_yet() -> None:
    """Of one copy, each agent's own filter knows a single observation at the first step: ε has no size."""
    configured = config(copies=1).env_runners(env_to_module_connector=normalizer)
    names = {"agent_0", "agent_1", "agent_2"}
    configured.multi_agent(policies=names, policy_mapping_fn=lambda agent, *_, **__: agent)
    subject = runner(configured, OURS, rollouts=RolloutAttack(epsilon=EPSILON))
    for part in fragment(subject).modules.values():
        size = moved(part).flatten()
        assert size[0] == 0
        assert (size[1:] > 0).all()


def test_actions_that_are_not_legal_are_no_rivals() -> None:
    """However sensitive the logit of an illegal action is, the adversary does not look at it."""
    box = gym.spaces.Box(-9, 9, (4,), np.float32)
    space = gym.spaces.Dict({"observation": box, "action_mask": gym.spaces.Box(0, 1, (3,), np.int8)})
    settings = {"fcnet_hiddens": [8]}
    module = RLModuleSpec(FlatActorCritic, space, gym.spaces.Discrete(3), model_config=settings).build()
    legal = torch.tensor([True, True, False]).expand(6, 3)
    obs, found = torch.randn(6, 4), []
    for factor in (1.0, 1000.0):
        module.actor[-1].weight.data[2] *= factor
        acting = ActingPolicy(ActingModule(module, Categorical(3)), HeldColumns(legal))
        assert acting.acting.mlp is not None
        for objective in ("margin", "kl"):
            attack = RolloutAttack(objective=objective)
            generator = torch.Generator().manual_seed(0)
            found.append(attack.perturb(acting, obs, epsilon=0.3, generator=generator).delta)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert (found[0].abs() > 0.29).any()


def test_box_actions_are_attacked_by_their_distribution() -> None:
    kwargs = {"continuous_actions": True}
    with pytest.raises(ValueError, match="expected a categorical policy for the objective 'margin'"):
        runner(config(), OURS, kwargs=kwargs, rollouts=RolloutAttack())
    subject = runner(config(), OURS, kwargs=kwargs, rollouts=RolloutAttack(objective="kl"))
    part = part_of(fragment(subject))
    assert (moved(part) > 0.09).all()
    assert torch.allclose(logits(subject, "agent", part.obs[:-1]), part.inputs, atol=1e-5)


def test_a_centralised_critic_keeps_the_truth() -> None:
    spec = RLModuleSpec(module_class=MAPPOModule, model_config=DefaultModelConfig(fcnet_hiddens=[8]))
    specs = MultiRLModuleSpec(rl_module_specs={"agent": spec})
    configured = config().rl_module(rl_module_spec=specs)
    part = part_of(fragment(runner(configured, OURS, critic="joint", rollouts=RolloutAttack())))
    assert part.clean_obs is not None
    change = (part.obs - part.clean_obs)[:-1].abs().amax((0, 1, 2))
    assert (change[:18] > 0).all()
    assert (change[18:] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_an_attack_leaves_a_memory_alone(shared: bool) -> None:
    """Decisions are those of the module on what was seen, in the states that follow from it."""
    lstm = DefaultModelConfig(use_lstm=True, max_seq_len=50, lstm_cell_size=8, vf_share_layers=shared)
    subject = runner(config().rl_module(model_config=lstm), OURS, rollouts=RolloutAttack(epsilon=0.5))
    part = part_of(fragment(subject))
    assert (moved(part) > 0.4).all()
    module = subject.module["agent"]
    batch = part.obs[:-1].flatten(1, 2).transpose(0, 1)
    state = module.get_initial_state()
    state = map_tree(lambda value: torch.as_tensor(value).expand(len(batch), *value.shape).clone(), state)
    with torch.no_grad():
        out = module.forward_exploration({Columns.OBS: batch, Columns.STATE_IN: state})
    expected = out[Columns.ACTION_DIST_INPUTS].transpose(0, 1).view_as(part.inputs)
    assert torch.allclose(expected, part.inputs, atol=1e-4)


@pytest.mark.parametrize("critic", ["clean", "seen"])
def test_values_are_of_what_the_critic_reads_everywhere(critic: Any) -> None:
    """Targets with λ = 1 are discounted rewards and the value of the last observation: clean, or seen."""
    attack = RolloutAttack(epsilon=0.5, critic=critic)
    configured = fast(config(steps=30, gamma=0.9, lambda_=1.0), OURS, rollouts=attack)
    subject = runner(configured.copy(copy_frozen=False), OURS, rollouts=attack)
    sampled = fragment(subject, num_timesteps=30 * 4)  # in episodes of 25
    module = configured.build_learner(env=None, spaces=subject.get_spaces()).module
    connector = FragmentsToBatch(gamma=0.9, lambda_=1.0, rollouts=attack)
    batch = connector(rl_module=module, batch={}, episodes=[sampled])["agent"]
    part = part_of(sampled)
    assert part.clean_obs is not None
    read = part.clean_obs if critic == "clean" else part.obs
    values = module["agent"].unwrapped().compute_values
    with torch.no_grad():
        last = values({Columns.OBS: read[-1]})
        cut = values({Columns.OBS: part.final_obs}).view(last.shape)
        free = standardize(batch["value_targets"] - values({Columns.OBS: read[:-1].flatten(0, 2)}))
    assert torch.allclose(batch["advantages"], free, atol=1e-3)
    targets = batch["value_targets"].view(part.rewards.shape)
    assert torch.allclose(targets[-1], part.rewards[-1] + 0.9 * last, atol=1e-4)
    assert torch.allclose(targets[24], part.rewards[24] + 0.9 * cut, atol=1e-4)
    assert ((part.obs[-1] - part.clean_obs[-1]).abs().amax(-1) > 0.4).all() == (critic == "seen")
    assert torch.equal(batch[Columns.OBS], part.obs[:-1].flatten(0, 2))
    assert torch.equal(batch[CLEAN_OBS], part.clean_obs[:-1].flatten(0, 2))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("apart", [False, True])
def test_it_trains_with_a_regularizer_beside_it(apart: bool) -> None:
    """All agents behind a filter; or of two competing modules one, whose critic reads what it sees."""
    attack = RolloutAttack(critic="clean", gap_interval=1)
    configured, env = config(steps=25).env_runners(env_to_module_connector=normalizer), OURS
    if apart:
        attack = RolloutAttack(critic="seen", gap_interval=1, agents=("agent_0",))
        configured, env = config("adversary", "agent", steps=25), TAG
    algorithm = fast(robustify(configured, AAJR()), env, rollouts=attack).build_algo()
    for _ in range(2):
        result = algorithm.train()
    measured = result["env_runners"]["marl_aajr"]["attack"]
    assert measured["rows"] == (100 if apart else 300)
    assert measured["attacked"]["episodes"] == 4
    assert measured["strong_gain"] >= measured["trained_gain"]
    algorithm.stop()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (RolloutAttack(share=0.01), "at least one of the 4 copies"),
        (RolloutAttack(agents=("nobody",)), "expected agents out of agent_0, agent_1, agent_2 to attack"),
        (RolloutAttack(mask=(True, False)), "expected 18 features in mask, got 2"),
        (RolloutAttack(objective="value"), "acts with a critic of the agent's own observation"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_starts(
    attack: RolloutAttack, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runner(config(), OURS, rollouts=attack)


def test_what_does_not_go_together_is_refused(ray_session: None) -> None:
    with pytest.raises(ValueError, match="expected floating-point observations to perturb, got int8"):
        runner(masked(config("player")), TICTACTOE, rollouts=RolloutAttack())
    configured = robustify(config(), OffPolicyAdversarialTraining())
    with pytest.raises(ValueError, match="leaves the policy loss as it is with rollouts under attack"):
        fast(configured, OURS, rollouts=RolloutAttack()).build_algo()
    with pytest.raises(ValueError, match="expected critic 'seen' in rollouts for the learner PPO"):
        fast(config(), OURS, lean=False, rollouts=RolloutAttack(critic="clean"))
    fast(config(), OURS, lean=False, rollouts=RolloutAttack())
    regularizer = AAJR(directions="rollout", objective="margin")
    for rollouts in (None, RolloutAttack(), RolloutAttack(path="all")):
        with pytest.raises(ValueError, match="expected rollouts under attack that keep the path, path='one'"):
            fast(robustify(config(), regularizer), OURS, rollouts=rollouts).build_algo()
    configured = robustify(config(), AAJR(directions="rollout"))
    with pytest.raises(ValueError, match="expected the objective of the rollouts, Margin"):
        fast(configured, OURS, rollouts=RolloutAttack(path="one")).build_algo()
