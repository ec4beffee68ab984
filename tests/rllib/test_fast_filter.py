"""The observation filter in the fast env runner."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from marl_aajr.core.distributions import Categorical
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.observation_filter import CLIP, ObservationNormalizer
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.victims.filters import SMALL
from tests.rllib.fast_runs import (
    CIRCLE,
    OURS,
    TAG,
    config,
    fragment,
    logits,
    normalizer,
    runner,
)


def test_observations_are_normalised_by_module_and_counted_once() -> None:
    configured = config("adversary", "agent").env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, TAG)
    sampled, raw = fragment(subject), fragment(runner(config("adversary", "agent"), TAG))
    for name in ("adversary", "agent"):
        part, moments = sampled.modules[name], kept_filter(subject).total[name]
        # Twelve observations of three agents and so on: those of the reset and of each of ten steps.
        assert moments.count == len(part.agents) * 4 * 11
        assert part.obs.abs().max() <= CLIP
        first = raw.modules[name].obs[0].reshape(-1, raw.modules[name].obs.shape[-1]).double()
        expected = (first - first.mean(0)) / (first.std(0) + 1e-6)
        torch.testing.assert_close(part.obs[0].flatten(0, 1).double(), expected, rtol=1e-3, atol=1e-4)


def test_what_runners_have_seen_merges_as_rllib_merges_it() -> None:
    runners = [
        runner(config("adversary", "agent").env_runners(env_to_module_connector=normalizer), TAG, index=i)
        for i in (0, 1, 2)
    ]
    for subject in runners[1:]:
        fragment(subject)
    merged = runners[0]._env_to_module.merge_states(
        [subject.get_state()["env_to_module_connector"] for subject in runners[1:]]
    )
    for subject in runners:
        subject.set_state({"env_to_module_connector": merged})
        assert kept_filter(subject).total["agent"].count == 2 * 11 * 4
    fragment(runners[1])
    assert kept_filter(runners[1]).total["agent"].count == 2 * 11 * 4 + 10 * 4, "one is known already"


@pytest.mark.parametrize("attack", [None, RolloutAttack(epsilon=0.1, share=0.5)], ids=["plain", "attacked"])
def test_a_sample_begins_under_what_the_runners_have_merged(attack: RolloutAttack | None) -> None:
    """All copies, attacked or not: (x - mean) / std by the statistics of now, and δ is of size ε / std."""
    configured = config(steps=5).env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, OURS, rollouts=attack)
    first, own = fragment(subject).modules["agent"], kept_filter(subject).total["agent"]
    before = (first.obs if first.clean_obs is None else first.clean_obs)[-1].double()
    raw = before * torch.as_tensor(own.std + SMALL) + torch.as_tensor(own.mean)
    merged = replace(own, count=3 * own.count, mean=own.mean + 1, squares=12 * own.squares)
    kept_filter(subject).set_state({"total": {"agent": vars(merged)}, "recent": {}})
    part = fragment(subject).modules["agent"]
    clean = part.obs if part.clean_obs is None else part.clean_obs
    torch.testing.assert_close(clean[0].double(), merged.normalize(raw), rtol=1e-4, atol=1e-5)
    assert kept_filter(subject).total["agent"].count == merged.count + part.steps * 12
    shown = logits(subject, "agent", part.obs[:-1])
    torch.testing.assert_close(Categorical(5).log_prob(shown, part.actions), part.log_probs)
    if attack is not None:
        size = ((part.obs - clean)[0] * (merged.std + SMALL)).abs().amax(-1)
        torch.testing.assert_close(size, torch.tensor([0.1, 0.1, 0, 0]).expand(3, 4), rtol=1e-3, atol=1e-6)


def test_evaluation_leaves_the_filter_alone() -> None:
    configured = config().env_runners(env_to_module_connector=normalizer)
    configured.in_evaluation = True
    subject = runner(configured)
    fragment(subject)
    assert kept_filter(subject).total == {}


def kept_filter(subject: FastEnvRunner) -> ObservationNormalizer:
    found = subject.normalizer
    assert found is not None
    return found


def test_zeros_of_agents_that_wait_are_not_counted() -> None:
    configured = config("a", "b", "c").env_runners(env_to_module_connector=normalizer)
    subject = runner(configured, CIRCLE, kwargs={"endings": "staggered"})
    for name, part in fragment(subject).modules.items():
        assert part.acts is not None
        assert not part.acts.all()
        # What they acted on, and what they saw last.
        assert kept_filter(subject).total[name].count == int(part.acts.sum()) + len(part.final_at)
