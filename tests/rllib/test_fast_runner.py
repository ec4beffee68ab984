"""The fast env runner samples what RLlib's modules would have done in PettingZoo's environments."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.fast import FragmentsToBatch
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.fragments import Fragment
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch
from tests.rllib.fast_runs import (
    CIRCLE,
    OURS,
    SPREAD,
    TAG,
    config,
    fragment,
    logits,
    normalizer,
    runner,
)


def columns_equal(first: Fragment, second: Fragment) -> bool:
    return all(
        torch.equal(getattr(part, name), getattr(second.modules[module], name))
        for module, part in first.modules.items()
        for name in ("obs", "actions", "log_probs", "rewards")
    )


def test_columns_have_a_row_for_each_step_agent_and_copy() -> None:
    sampled = fragment(runner(config("adversary", "agent"), TAG))
    assert list(sampled.modules) == ["adversary", "agent"]
    assert sampled.modules["adversary"].obs.shape == (11, 3, 4, 16)
    assert sampled.modules["agent"].obs.shape == (11, 1, 4, 14)
    assert sampled.modules["adversary"].inputs.shape == (10, 3, 4, 5)
    assert sampled.env_steps() == 40
    assert sampled.agent_steps() == 160
    assert len(sampled) == 120


def test_one_forward_pass_for_all_agents_of_a_module_and_all_copies() -> None:
    subject = runner(config())
    fragment(subject)  # builds
    rows: list[int] = []
    (layer, *_) = [m for m in subject.module["agent"].pi.modules() if isinstance(m, torch.nn.Linear)]
    layer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    fragment(subject)
    assert rows == [3 * 4] * 10


def test_inputs_and_log_probabilities_are_the_modules() -> None:
    subject = runner(config())
    part = fragment(subject).modules["agent"]
    expected = logits(subject, "agent", part.obs[:-1])
    torch.testing.assert_close(part.inputs, expected)
    log_probs = torch.distributions.Categorical(logits=expected).log_prob(part.actions)
    torch.testing.assert_close(part.log_probs, log_probs)


def test_fragments_follow_each_other_without_a_gap() -> None:
    subject = runner(config())
    first, second = (fragment(subject).modules["agent"] for _ in range(2))
    assert torch.equal(first.obs[-1], second.obs[0])


def test_replaying_the_actions_in_the_environment_gives_the_same_columns() -> None:
    subject = runner(config(steps=30))
    part = fragment(subject).modules["agent"]
    env = PettingZooBatch(resolve(SPREAD), 4)
    obs = env.reset(seed=0)
    for t in range(30):
        for g, agent in enumerate(part.agents):
            assert torch.equal(part.obs[t, g], obs[agent])
        step = env.step(dict(zip(part.agents, part.actions[t], strict=True)))
        obs = step.obs
        assert torch.equal(part.rewards[t], torch.stack(list(step.rewards.values())))
        assert part.truncated[t].all() == (t == 24)
    assert torch.equal(part.final_obs.view(3, 4, -1)[1], fragment_end(env, part.actions[:25], "agent_1"))


def fragment_end(env: BatchedEnv, actions: Tensor, agent: str) -> Tensor:
    env.reset(seed=0)
    for action in actions:
        step = env.step(dict(zip(env.possible_agents, action, strict=True)))
    return step.final_obs[agent]


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device: reading a value, or shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return func(*args, **(kwargs or {}))


def test_waits_for_the_device_are_per_fragment_not_per_step() -> None:
    subject = runner(config(), OURS, kwargs={"max_cycles": 1000})
    fragment(subject)
    counts = []
    for steps in (10, 40):
        with Waits() as waits:
            fragment(subject, num_timesteps=4 * steps)
        counts.append(waits.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("environment", [SPREAD, CIRCLE])
def test_sampling_is_a_function_of_the_seed(environment: str) -> None:
    kwargs = {"endings": "staggered"} if environment == CIRCLE else {}
    one, same, other, elsewhere = (
        runner(config("agent", "a", "b", "c", seed=seed), environment, kwargs=kwargs, index=index)
        for seed, index in ((7, 1), (7, 1), (8, 1), (7, 2))
    )
    for subject in (same, other, elsewhere):
        subject.module.set_state(one.module.get_state())
    first, again, second = fragment(one), fragment(same), fragment(one)
    assert columns_equal(first, again)
    assert not columns_equal(first, fragment(other))
    assert not columns_equal(first, fragment(elsewhere))
    assert columns_equal(second, fragment(same))


def test_starting_afresh_leaves_no_trace_of_what_was_before() -> None:
    old, new = runner(config(seed=1)), runner(config(seed=2))
    new.module.set_state(old.module.get_state())
    fragment(old)
    for subject in (old, new):
        subject.start_afresh(seed=5)
    assert columns_equal(fragment(old), fragment(new))
    assert columns_equal(fragment(old), fragment(new))


def test_forced_reset_begins_new_episodes() -> None:
    subject = runner(config(steps=4))
    first = fragment(subject).modules["agent"].obs[-1]
    assert not torch.equal(fragment(subject, force_reset=True).modules["agent"].obs[0], first)


def test_fragments_survive_the_way_to_another_process() -> None:
    sampled = fragment(runner(config("adversary", "agent"), TAG))
    arrived = pickle.loads(pickle.dumps(sampled))
    assert columns_equal(sampled, arrived)
    assert torch.equal(arrived.episode_over, sampled.episode_over)
    assert arrived.modules["agent"].agents == ("agent_0",)


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_copies_inference_and_columns_are_on_the_device_and_are_learned_from(device: str) -> None:
    configured = config(steps=30).env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, OURS, device=device)
    sampled = fragment(subject)
    part = sampled.modules["agent"]
    assert subject.env is not None
    assert subject.env.batch.device.type == device
    assert {getattr(part, name).device.type for name in ("obs", "actions", "rewards", "final_obs")} == {
        device
    }
    assert next(subject.module["agent"].parameters()).device.type == device
    learner = build(configured, subject)
    before = {name: value.clone() for name, value in learner.module["agent"].state_dict().items()}
    learn(learner, sampled)
    after = learner.module["agent"].state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_learners_get_equal_shares_of_the_copies() -> None:
    subject = runner(config(copies=6).learners(num_learners=2))
    first, second = subject.sample(num_timesteps=180)
    assert len(first) == len(second)
    whole = torch.cat([first.modules["agent"].obs, second.modules["agent"].obs], 2)
    subject.start_afresh(seed=0)
    subject.config = subject.config.copy(copy_frozen=False)
    subject.config.num_learners = 1
    again = fragment(subject, num_timesteps=180)
    assert torch.equal(whole, again.modules["agent"].obs)
    for part in (first, second):
        assert part.modules["agent"].final_at[:, 2].unique().tolist() == [0, 1, 2]
    ends = torch.cat([part.modules["agent"].final_obs.view(3, 3, -1) for part in (first, second)], 1)
    assert torch.equal(ends, again.modules["agent"].final_obs.view(3, 6, -1))


@pytest.mark.parametrize(
    ("environment", "modules"),
    [(SPREAD, ("agent",)), (CIRCLE, ("a", "b", "c"))],
    ids=["at once", "in turns"],
)
def test_recurrent_modules_are_trained_in_the_states_that_they_were_in(
    environment: str, modules: tuple[str, ...]
) -> None:
    lstm = DefaultModelConfig(use_lstm=True, max_seq_len=7, lstm_cell_size=8, vf_share_layers=False)
    configured = config(*modules, steps=25).rl_module(model_config=lstm)
    kwargs = {"endings": "staggered"} if environment == CIRCLE else {}
    subject = runner(configured, environment, kwargs=kwargs)
    fragment(subject)
    sampled = fragment(subject)
    connector = FragmentsToBatch(gamma=0.9, lambda_=0.8)
    batch = connector(rl_module=subject.module, batch={}, episodes=[sampled], shared_data={})
    for name in modules:
        columns = batch[name]
        real = columns["loss_mask"]
        with torch.no_grad():
            again = subject.module[name].forward_exploration(dict(columns))["action_dist_inputs"]
        assert real.any()
        torch.testing.assert_close(again[real], columns["action_dist_inputs"][real])
        assert columns["seq_lens"].tolist() == real.sum(1).tolist()
    learner = build(configured, subject)
    learn(learner, sampled)


def learn(learner: Any, sampled: Fragment) -> None:
    learner.update(
        training_data=TrainingData(episodes=[sampled]),
        timesteps={"num_env_steps_sampled_lifetime": 0},
        num_epochs=2,
        minibatch_size=64,
        shuffle_batch_per_epoch=True,
    )


def build(configured: Any, subject: FastEnvRunner) -> Any:
    spec = configured.get_multi_rl_module_spec(spaces=subject.get_spaces())
    learner = configured.learner_class(config=configured, module_spec=spec)
    learner.build()
    return learner
