"""The attack that a run was trained under, as an attack of an evaluation.

Returns under it, beside those under the strongest attack of its size, say whether a policy holds up against
adversaries, or against the one that it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from marl_aajr.attacks import Attack
from marl_aajr.core.objectives import Objective
from marl_aajr.core.policy import Policy
from marl_aajr.rollout.attack.rollout_attack import AscentStep, RolloutAttack
from marl_aajr.victims import Victim


@dataclass(frozen=True, kw_only=True)
class TrainingAttack(Attack):
    """The ascent of a `RolloutAttack`: its settings mean what they mean there.

    It is played on everybody at every step, whatever share, agents, worst agents and steps training had, and
    at its full radius, where training drew one for each episode.
    """

    name: ClassVar[str] = "training_attack"
    summary: ClassVar[str] = "the gradient attack that the run was trained under"

    objective: str | Objective = RolloutAttack.objective  # type: ignore[assignment]
    steps: int = RolloutAttack.steps
    step_size: float = RolloutAttack.step_size
    step: AscentStep = RolloutAttack.step

    @classmethod
    def of(cls, rollouts: RolloutAttack, *, env_steps: float) -> Self | None:
        """The attack as it is at an environment step of its run; None: its ε is 0 there, or it is on words.

        Attacks on words are those of the suite `words`.
        """
        epsilon = rollouts.size_at(env_steps)
        if not epsilon or rollouts.norm == "words":
            return None
        objective = rollouts.objective
        return cls(
            perturbations=rollouts.perturbations(epsilon),
            objective=objective if isinstance(objective, str) else rollouts.adversary,
            steps=rollouts.steps,
            step_size=rollouts.step_size,
            step=rollouts.step,
        )

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        own = {name: getattr(self, name) for name in ("objective", "steps", "step_size", "step")}
        inside, names = self.perturbations, ("norm", "mask", "scale", "low", "high")
        rollouts = RolloutAttack(**own, **{name: getattr(inside, name) for name in names})
        return rollouts.perturb(policy, obs, epsilon=inside.epsilon, generator=generator).delta

    def against(self, victim: Victim, agent: str) -> Attack:
        needs_critic = "critic" in self.objective_for(victim.distribution(agent)).needs
        if needs_critic and victim.policy(agent).critic is None:
            raise ValueError(
                f"expected a victim with a critic for the attack {self.name!r} on its values, got none for "
                f"{agent!r}"
            )
        return self
