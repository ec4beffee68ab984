"""Attacks that act for all agents at once, and those that are learned for each size."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor

from marl_aajr.adversaries.learned import FittedAttack
from marl_aajr.attacks import PGD, Attack, UniformNoise
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet
from marl_aajr.evaluation import evaluate
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim
from tests.evaluation.players import played, sign_reader, signs, team


@dataclass(frozen=True, kw_only=True)
class Swap(PGD):
    """One adversary for all: turns an agent's sign by what its neighbour was told that the agent sees."""

    name: ClassVar[str] = "swap"
    acts_jointly: ClassVar[bool] = True
    _actions: Tensor | None = None

    def choose_actions(self, seen: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
        whole = torch.stack(list(seen.values()))
        assert whole.ndim == 3
        return {agent: -1.1 * whole[i, :, :1].sign() for i, agent in enumerate(seen)}

    def with_actions(self, actions: Tensor) -> Attack:
        return replace(self, _actions=actions)

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        assert self._actions is not None
        return torch.cat([self._actions, torch.zeros_like(self._actions)], -1)


class TestWhatReachesWhom:
    @pytest.mark.parametrize("budget", [None, "agents=2", "scale=agent_2:2", "steps=2"])
    def test_orders_reach_the_rows_that_they_are_for(self, budget: str | None) -> None:
        """Agents leave at different times, and only counted copies are lied to: no row may slip."""
        spec = signs()
        victim = team(spec, sign_reader())
        joint = Swap(perturbations=PerturbationSet(epsilon=1.1))
        settings: dict[str, Any] = {"episodes": 13, "num_envs": 5, "selection_episodes": 5, "budget": budget}
        together = evaluate(victim, spec, attacks=[(joint, 1.1)], **settings)
        alone = evaluate(victim, spec, attacks=[("fgsm", 1.1)], **settings)
        assert together.attacks[0].returns == alone.attacks[0].returns
        assert together.attacks[0].success_rate == 1.0

    def test_what_is_learned_for_one_size_is_learned_for_each(self) -> None:
        fitted: list[float] = []

        @dataclass(frozen=True, kw_only=True)
        class Sized(UniformNoise, FittedAttack):
            per_size: ClassVar[bool] = True
            done: bool = False

            @property
            def ready(self) -> bool:
                return self.done

            def fit(
                self,
                victim: Victim,
                env: BatchedEnv,
                *,
                agents: Collection[str],
                seed: int,
                units: Units = "raw",
                home: Path | None = None,
            ) -> Self:
                fitted.append(self.perturbations.epsilon)
                return replace(self, done=True)

        attack = Sized(perturbations=PerturbationSet(epsilon=1.0))
        played(attacks=[(attack, 0.3), (attack, 0.6)], actions=["greedy", "sampled"])
        assert fitted == [0.3, 0.6]
