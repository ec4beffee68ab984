"""The critic attack: show the policy what its own critic thinks the worst of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from marl_aajr.attacks.base import Attack
from marl_aajr.attacks.gradient import PGD
from marl_aajr.core.objectives import Objective
from marl_aajr.victims import Victim


@dataclass(frozen=True, kw_only=True)
class CriticPGD(PGD):
    """`PGD` on −V(s + δ), V the victim's critic of the agent's own observation.

    A heuristic: the critic says nothing of what the actor does at s + δ. Published baselines are judged by
    it, which is why it is here; `robust-sarsa` follows the actor.

    Raises:
        ValueError: against a victim without a critic, or one whose critic reads more than its observation.

    Source: Pattanaik 2018 (arXiv 1712.03632), as run by Zhang 2020 (arXiv 2003.08938).
    """

    name: ClassVar[str] = "critic"
    summary: ClassVar[str] = "projected gradient descent on the victim's own critic"

    objective: str | Objective = "value"
    restarts: int = 1

    def against(self, victim: Victim, agent: str) -> Attack:
        if victim.policy(agent).critic is None:
            raise ValueError(
                f"expected a victim with a critic for the attack {self.name!r}, got none for {agent!r}; use "
                "robust-sarsa, which learns one"
            )
        return self
