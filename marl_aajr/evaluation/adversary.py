"""Who lies to whom in one row, when, and what it did."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from marl_aajr.attacks import Attack, Attacked
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.evaluation.suites import Units
from marl_aajr.evaluation.timing import Pace
from marl_aajr.victims import Victim
from marl_aajr.victims.filters import through_filter


@dataclass
class Tally:
    """What an attack did to single decisions, summed over every attacked decision of every episode.

    Attributes:
        decisions: how many were attacked.
        changed: how many greedy actions changed.
        gain: sum of g(δ) − g(0), g the attack's objective.
        kl: sum of KL(π(·|s) ‖ π(·|s + δ)), in nats.
        strikes: steps in which somebody was lied to, as the judge counted them; 0 where they are not limited.
    """

    decisions: int = 0
    changed: float = 0.0
    gain: float = 0.0
    kl: float = 0.0
    strikes: int = 0

    def add(self, attacked: Attacked, distribution: ActionDistribution) -> None:
        """Count one attacked batch."""
        self.decisions += len(attacked.success)
        self.changed += attacked.success.double().sum().item()
        self.gain += (attacked.value - attacked.clean_value).double().sum().item()
        self.kl += distribution.kl(attacked.clean_outputs, attacked.outputs).double().sum().item()


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An attack, whom it lies to and when, its random numbers, and what it did.

    Attributes:
        attack: what it does, fitted where it must be.
        victim: who is attacked.
        agents: whose observations it changes.
        units: of the attack's perturbation set.
        generator: the attack's random numbers.
        scales: by agent, its ε as a multiple of the attack's; absent: 1.
        pace: in how many steps, and in which; None: in every step.
        tally: what it did to single decisions.
    """

    attack: Attack
    victim: Victim
    agents: Collection[str]
    units: Units
    generator: torch.Generator
    scales: Mapping[str, float] = field(default_factory=dict)
    pace: Pace | None = None
    tally: Tally = field(default_factory=Tally)

    @cached_property
    def prepared(self) -> dict[str, Attack]:
        """By attacked agent: the attack on its policy, of its own size, in the units of its network."""
        return {
            agent: prepare(self._sized(agent), self.victim, agent, units=self.units) for agent in self.agents
        }

    def together(self, agents: Sequence[str]) -> list[list[str]]:
        """Agents of one module and one filter in groups that can be lied to together."""
        sizes = [self.scales.get(agent, 1.0) for agent in agents]
        return [
            part
            for size in dict.fromkeys(sizes)
            for part in self.attack.together([a for a, own in zip(agents, sizes, strict=True) if own == size])
        ]

    def _sized(self, agent: str) -> Attack:
        scale = self.scales.get(agent, 1.0)
        return self.attack if scale == 1.0 else self.attack.at(scale * self.attack.perturbations.epsilon)


def prepare(attack: Attack, victim: Victim, agent: str, *, units: Units) -> Attack:
    """The attack on one agent's policy, in the units of its network.

    Raises:
        ValueError: the victim lacks what the attack needs.
    """
    if units == "raw":
        inside = through_filter(attack.perturbations, victim.filters.get(agent))
        attack = replace(attack, perturbations=inside)
    return attack.against(victim, agent)
