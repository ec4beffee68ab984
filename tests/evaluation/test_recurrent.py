"""Victims with a memory, evaluated: returns known in closed form, with and without attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from marl_aajr.attacks import Attack
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.replacements import Replacement
from tests.evaluation.players import returns_one_by_one, sign_reader, signs, team

EPISODES, COPIES = 12, 5


class Alternating(nn.Module):
    """Right about Signs in its first decision of an episode, wrong in its second, and so on."""

    def initial_state(self, rows: int) -> Tensor:
        return torch.ones(rows, 1)

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = obs[:, :1] * state
        return torch.cat([-x, x], -1), -state


class Sticking(nn.Module):
    """Answers with the sign that it was shown first in an episode."""

    def initial_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 1)

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.where(state == 0, obs[:, :1], state)
        return torch.cat([-first, first], -1), first


@dataclass(frozen=True, kw_only=True)
class Asking(Attack):
    """Asks the policy again and again, and reverses the sign."""

    name: ClassVar[str] = "asking"
    summary: ClassVar[str] = "for tests"
    access: ClassVar[Any] = "queries"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        for _ in range(3):
            policy(obs + torch.randn(obs.shape, generator=generator))
        return torch.stack([-2 * obs[:, 0], torch.zeros(len(obs))], -1)


def attack() -> tuple[Asking, float]:
    return Asking(perturbations=PerturbationSet(epsilon=2.0)), 2.0


def lengths() -> list[dict[str, int]]:
    """How many decisions each agent makes in each episode: what one who is always right earns."""
    perfect, spec = team(signs(), sign_reader()), signs()
    found = returns_one_by_one(perfect, spec, episodes=EPISODES, seed=0, num_envs=COPIES)
    return [{agent: int(total) for agent, total in episode.items()} for episode in found]


def test_the_state_begins_with_each_episode_and_moves_once_a_decision() -> None:
    spec = signs()
    result = evaluate(team(spec, Alternating()), spec, attacks=[attack()], episodes=EPISODES, num_envs=COPIES)
    expected = [float(sum(n % 2 for n in episode.values())) for episode in lengths()]
    assert max(max(episode.values()) for episode in lengths()) > 2
    assert list(result.clean.returns) == expected
    assert list(result.attacks[0].returns) == [-total for total in expected]


def test_the_state_follows_what_was_shown() -> None:
    """Attacked in its first decision only, by what it saw, it is wrong wherever it would have been right."""
    spec = signs()
    result = evaluate(team(spec, Sticking()), spec, attacks=[attack()], episodes=EPISODES, num_envs=COPIES)
    assert list(result.attacks[0].returns) == [-total for total in result.clean.returns]
    assert result.attacks[0].success_rate == pytest.approx(_firsts() / _decisions())


def test_a_traitor_may_remember() -> None:
    spec = signs()
    traitor = Replacement(kind="traitor", agents=("agent_0",), victim=team(spec, Alternating()), source="x")
    result = evaluate(team(spec, sign_reader()), spec, replace=[traitor], episodes=EPISODES, num_envs=COPIES)
    expected = [
        float(episode["agent_0"] % 2 + episode["agent_1"] + episode["agent_2"]) for episode in lengths()
    ]
    [row] = [row for row in result.adversarial_agents if row.kind == "traitor"]
    assert list(row.returns) == expected


def _firsts() -> int:
    return sum(len(episode) for episode in lengths())


def _decisions() -> int:
    return sum(sum(episode.values()) for episode in lengths())
