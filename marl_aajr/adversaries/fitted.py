"""Attacks that must play before they can attack: the contract of `fit`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from marl_aajr.attacks import Attack
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.victims import Victim


@dataclass(frozen=True, kw_only=True)
class FittedAttack(Attack):
    """An attack that learns from the frozen victim what it needs; `ready` says whether it has."""

    per_size: ClassVar[bool] = False
    """Whether `fit` is for one radius; else what was fitted once serves all."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it has been fitted."""

    @abstractmethod
    def fit(
        self,
        victim: Victim,
        env: BatchedEnv,
        *,
        agents: Collection[str],
        seed: int,
        units: Literal["raw", "network"] = "raw",
        home: Path | None = None,
    ) -> Self:
        """Learn from the frozen victim what the attack needs.

        Args:
            victim: the policies that will be attacked; it plays all agents.
            env: copies to play on; left in the middle of some episode.
            agents: the agents that will be attacked, all of one team; what the team earns is to fall.
            seed: of the episodes and of the learning.
            units: of the perturbation set: the environment's, or those behind the observation filter.
            home: folder of the victim's run, which keeps what is worth it; None: nothing is kept.

        Returns:
            The attack, `ready`.
        """
