"""A saved language model under the suite of words, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marl_aajr.envs.bargain_v0 import batched_env

from marl_aajr import Victim, evaluate
from marl_aajr.evaluation.attack_entries import AttackEntry
from marl_aajr.evaluation.protocol import load_suite
from marl_aajr.language import LanguageNetwork

FEW: dict[str, Any] = {
    "episodes": 2,
    "selection_episodes": 2,
    "seed": 0,
    "channels": ["messages"],
    "workers": 1,
}


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = batched_env(1)
    torch.manual_seed(0)
    network = LanguageNetwork.of_words(env.words, outputs=3, hidden_size=8, heads=2)
    torch.nn.init.normal_(network.embeddings, std=1.0)
    victim = Victim(
        module_of=dict.fromkeys(env.possible_agents, "reader"),
        modules={"reader": network},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        env_name="marl_aajr.envs.bargain_v0",
    )
    return victim.save(tmp_path_factory.mktemp("reader") / "victim")


def test_the_standard_suite_plays_all_attacks_that_need_no_critic_and_no_other_run(victim: Path) -> None:
    """Robust Sarsa is fitted for less."""
    standard = load_suite("standard")
    less = AttackEntry(attack="robust-sarsa", settings={"experience": 200, "updates": 5})
    attacks = tuple(less if entry.name == less.name else entry for entry in standard.attacks)
    short = standard.changed(attacks=attacks, actions=("greedy",), epsilons=(0.5,), controls=())
    judged = evaluate(Victim.load(victim), suite=short, norm="l2", **FEW)
    (found,) = judged.results
    played = {row.attack.name for row in found.attacks}
    assert played == {entry.name for entry in attacks} - {"critic", "transfer"}
    assert {skipped.attack for skipped in judged.skipped} == {"critic", "transfer"}


def test_the_suite_of_words(victim: Path) -> None:
    judged = evaluate(Victim.load(victim), suite="words", epsilons=[1, 2], **FEW)
    (found, *_) = judged.results
    kinds = {("words-random", 1), ("words-gradient", 2), ("words-greedy", 2), ("words-exhaustive", 1)}
    assert {(row.attack.name, row.epsilon) for row in found.attacks} >= kinds
    assert not [check for check in judged.checks if check.verdict == "fail"]
