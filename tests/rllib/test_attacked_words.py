"""Rollouts under other words: what agents read, act on and learn from is words again, and synonyms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from marl_aajr import robustify
from marl_aajr.attacks.substitution import ExhaustiveWords
from marl_aajr.core.channels import Channel
from marl_aajr.core.distributions import Categorical
from marl_aajr.core.objectives import Clean, Margin
from marl_aajr.core.token_network import TokenPolicy
from marl_aajr.core.word_budget import WordBudget
from marl_aajr.core.words import Words
from marl_aajr.rllib.language_module import LanguageModule
from marl_aajr.rllib.sampling.run_env_runner import RunEnvRunner
from marl_aajr.rollout.attack.on_words import attack_on
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import RunConfig
from marl_aajr.training.policy_mapping import policy_mapping_of
from marl_aajr.training.trainer import train
from tests.rllib.fast_runs import fragment, runner
from tests.rllib.recorder import Recorder, chunks, key
from tests.training.runs import numbers, tiny, train_and_copy

BARGAIN = "marl_aajr.envs.bargain_v0"
TWO = RolloutAttack(norm="words", epsilon=2, channels=("messages",))


def reading(**changes: Any) -> RunConfig:
    """Two readers with one network of a few hundred weights."""
    model = {"language": {"hidden_size": 8, "layers": 1, "heads": 2}}
    return tiny(**{"env": {"name": BARGAIN}, "env_steps": 200, "model": model, **changes})


def configured(rollouts: RolloutAttack) -> Any:
    """RLlib's configuration of readers under attack in its own runners."""
    config = build_config(reading(resources={"runner": "stock", "envs_per_runner": 4}))
    return robustify(config, None, rollouts=rollouts)


def spoken() -> tuple[Words, list[int]]:
    """The environment's words, and the places of messages."""
    mapping = policy_mapping_of(reading())
    channel = mapping.channels["ann"]["messages"]
    assert channel.words is not None
    return channel.words, list(channel.features)


def check_synonyms(seen: Tensor, clean: Tensor, *, most: int) -> int:
    """At most so many words of messages are others, all of them synonyms; the number of those that are."""
    words, places = spoken()
    changed = seen != clean
    assert int(changed.sum(-1).max()) <= most
    assert not changed[..., [i for i in range(seen.shape[-1]) if i not in places]].any()
    classes = torch.tensor(words.synonyms)
    assert torch.equal(classes[seen.long()], classes[clean.long()])
    return int(changed.sum())


def test_readers_act_on_synonyms_and_that_is_what_is_kept() -> None:
    sampler = runner(build_config(reading()), BARGAIN, rollouts=TWO)
    module: LanguageModule = sampler.module["team"]
    part = fragment(sampler, num_timesteps=32).modules["team"]
    assert part.clean_obs is not None
    seen, clean = part.obs[: part.steps], part.clean_obs[: part.steps]
    assert check_synonyms(seen, clean, most=2) > len(seen)
    with torch.no_grad():
        inputs = module.actor(seen.flatten(0, -2))
        torch.testing.assert_close(part.inputs.flatten(0, -2), inputs, atol=1e-5, rtol=1e-5)
        logp = Categorical(inputs.shape[-1]).log_prob(inputs, part.actions.flatten())
    torch.testing.assert_close(part.log_probs.flatten(), logp, atol=1e-5, rtol=1e-5)


def test_the_worst_of_both_reads_other_words_and_the_other_the_truth() -> None:
    sampler = runner(build_config(reading()), BARGAIN, rollouts=replace(TWO, worst_agents=1))
    part = fragment(sampler, num_timesteps=32).modules["team"]
    assert part.clean_obs is not None
    changed = (part.obs != part.clean_obs)[: part.steps].any(-1)
    assert changed.any()
    assert int(changed.sum(1).max()) == 1


@torch.no_grad()
def test_it_finds_most_of_the_worst_word() -> None:
    """Of one word at most the exact worst case is known: never more than that, and most of it."""
    sampler = runner(build_config(reading()), BARGAIN, rollouts=RolloutAttack(norm="words", epsilon=1))
    network = sampler.module["team"].actor
    for parameter in network.parameters():  # of trained size
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    part = fragment(sampler, num_timesteps=16).modules["team"]
    assert part.clean_obs is not None
    seen, clean = (obs[: part.steps].flatten(0, -2).long() for obs in (part.obs, part.clean_obs))
    policy = TokenPolicy(network, Categorical(part.inputs.shape[-1]), clean)
    obs = policy.embed(clean)
    channels = policy_mapping_of(reading()).channels["ann"]
    exact = ExhaustiveWords(perturbations=WordBudget(epsilon=1), objective="margin").held_to(channels, 17)
    assert exact is not None
    g = Margin().bind(policy, Clean(policy(obs)))
    worst = g(obs + exact.run(policy, obs, generator=torch.Generator())) - g(obs)
    found = g(policy.embed(seen)) - g(obs)
    assert (found <= worst + 1e-4).all()
    assert found.mean() > 0.5 * worst.mean() > 0


def test_rllibs_own_runners_show_synonyms_too() -> None:
    torch.manual_seed(0)
    sampler: Any = RunEnvRunner(config=configured(TWO), worker_index=0)
    recorder = Recorder(sampler)
    changed = 0
    for one in chunks(sampler, num_timesteps=32):
        kept = torch.as_tensor(np.stack(one.get_observations()))
        true = torch.as_tensor(np.stack(recorder.true[key(one)][one.t_started :][: len(kept)]))
        changed += check_synonyms(kept, true, most=2)
        module = sampler.module["team"]
        with torch.no_grad():
            inputs = module.forward_exploration({Columns.OBS: kept[:-1]})[Columns.ACTION_DIST_INPUTS]
        logp = Categorical(inputs.shape[-1]).log_prob(inputs, torch.as_tensor(np.stack(one.get_actions())))
        expected = torch.as_tensor(one.get_extra_model_outputs(Columns.ACTION_LOGP))
        torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)
    assert changed > 16


def test_a_number_of_words_rises_by_whole_ones() -> None:
    rising = RolloutAttack(norm="words", epsilon=2).ramped(0, 100)
    assert [rising.size_at(step) for step in (0, 40, 50, 99, 100, 200)] == [0, 0, 1, 1, 2, 2]
    assert not rising.active(49)
    assert rising.active(50)


def test_a_run_trains_with_aajr_beside_it_and_resumes_to_the_same_numbers(
    ray_session: None, tmp_path: Path
) -> None:
    aajr = {"name": "aajr", "ramp": None, "epsilon": 0.5, "norm": "l2", "steps": 2, "channels": ["messages"]}
    rollouts = {"ramp": None, "norm": "words", "epsilon": 2, "channels": ["messages"], "gap_interval": 1}
    config = reading(method=aajr, rollouts=rollouts, checkpoint_every=1)
    whole, half = train_and_copy(config, tmp_path, after=1)
    lines = numbers(whole)
    assert numbers(train(config, half, resume=True)) == lines
    for line in lines:
        assert line["attack"]["epsilon"] == 2
        assert 0 <= line["attack"]["inner_gain"] <= line["attack"]["strong_gain"]
        assert line["attack"]["monotone_fraction"] is None
        assert line["modules"]["team"]["aajr/gain_mean"] > 0
    # Nobody has spoken in the first step of an episode.
    assert max(line["attack"]["strong_gain"] for line in lines) > 0


def test_agents_of_one_network_have_one_vocabulary() -> None:
    mapping = policy_mapping_of(reading())
    observed = {agent: dict(mapping.channels[agent]) for agent in ("ann", "bob")}
    attack = attack_on(TWO, observed, 17)
    assert attack.perturbations(1.0).mask == tuple(i in spoken()[1] for i in range(17))
    words, places = spoken()
    others = Words(words.vocabulary[:1] + words.vocabulary[:0:-1], words.synonyms)
    observed["bob"] = {"messages": Channel(tuple(places), words=others)}
    with pytest.raises(ValueError, match="one vocabulary for agents who have one network"):
        attack_on(TWO, observed, 17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.5}, "whole number of words as epsilon with norm words, got 0.5"),
        ({"epsilon": [[0, 0], [10, 1.5]]}, "whole number of words as epsilon with norm words, got 1.5"),
        ({"epsilon": 1, "epsilon_draw": (0.0, 1.0)}, "nothing lies between words"),
        ({"epsilon": 1, "path": "one"}, "nothing lies between words"),
        ({"epsilon": 1, "scale": (1.0,)}, "expected no scale of a number of words"),
    ],
)
def test_settings_that_words_do_not_have(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutAttack(norm="words", **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "adversarial_training"}, "norm words for agents that read words, got linf"),
        (
            {"env": {"name": "marl_aajr.envs.simple_spread_v3"}, "model": {}},
            "agents that read words for norm words",
        ),
        ({"env": {"name": BARGAIN}, "model": {}}, "got observations of int64 without model.language"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    changes: Any, message: str, tmp_path: Path
) -> None:
    method = {"name": "adversarial_training", "norm": "words", "epsilon": 1}
    with pytest.raises(ValueError, match=message):
        train(reading(**{"method": method, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_plain_rllib_users_are_told_the_same() -> None:
    with pytest.raises(ValueError, match="norm words for agents that read words, got linf"):
        runner(build_config(reading()), BARGAIN, rollouts=RolloutAttack())
