"""An attack on some agents in the episodes of one row, and the statistics of what it changed.

An `Attack` perturbs batches of observations. Here is the rest of what one row of an evaluation needs: the
attacked agents, each one's ε in the units of its network, the steps in which the budget lets it act, and its
random numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from marl_aajr.attacks import Attack, Attacked
from marl_aajr.core.distributions import ActionDistribution
from marl_aajr.evaluation.attack_schedule import (
    AttackSchedule,
    BudgetCounter,
    StepSelector,
    acting_and_preferences,
    mean_where,
)
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.victims import Victim
from marl_aajr.victims.filters import through_filter
from marl_aajr.victims.stepper import DecisionBatch


@dataclass
class AttackStatistics:
    """What an attack did to single decisions, summed over every attacked decision of every episode.

    Attributes:
        decisions: number of attacked decisions.
        changed: number of greedy actions that changed.
        gain: sum of g(δ) − g(0), g the attack's objective.
        kl: sum of KL(π(·|s) ‖ π(·|s + δ)), in nats.
        attacked_steps: number of attacked steps, as the budget counter has it; 0 where they are not limited.
    """

    decisions: int = 0
    changed: float = 0.0
    gain: float = 0.0
    kl: float = 0.0
    attacked_steps: int = 0

    def add(self, attacked: Attacked, distribution: ActionDistribution) -> None:
        """Count one attacked batch."""
        self.decisions += len(attacked.success)
        self.changed += attacked.success.double().sum().item()
        self.gain += (attacked.value - attacked.clean_value).double().sum().item()
        self.kl += distribution.kl(attacked.clean_outputs, attacked.outputs).double().sum().item()


@dataclass(kw_only=True, eq=False)
class AttackRun:
    """One attack over the episodes of one row: `begin` once, then `perturb` and `restart` in every step.

    Attributes:
        attack: fitted where it must be.
        victim: the policies under attack.
        agents: those whose observations are perturbed.
        units: of the attack's perturbation set.
        generator: the attack's random numbers.
        scales: agent -> its ε as a multiple of the attack's; absent: 1.
        schedule: the steps in which the attack acts; None: every step.
        statistics: what the attack did to single decisions so far.
    """

    attack: Attack
    victim: Victim
    agents: Collection[str]
    units: Units
    generator: torch.Generator
    scales: Mapping[str, float] = field(default_factory=dict)
    schedule: AttackSchedule | None = None
    statistics: AttackStatistics = field(default_factory=AttackStatistics)
    _selector: StepSelector | None = field(init=False, default=None)
    _counter: BudgetCounter | None = field(init=False, default=None)

    @cached_property
    def prepared(self) -> dict[str, Attack]:
        """Attacked agent -> the attack on its policy, of its own size, in the units of its network."""
        return {
            agent: prepare(self._sized(agent), self.victim, agent, units=self.units) for agent in self.agents
        }

    def together(self, agents: Sequence[str]) -> list[list[str]]:
        """Agents of one module and one filter in groups that can be attacked as one batch."""
        sizes = [self.scales.get(agent, 1.0) for agent in agents]
        return [
            part
            for size in dict.fromkeys(sizes)
            for part in self.attack.together([a for a, own in zip(agents, sizes, strict=True) if own == size])
        ]

    def begin(self, num_envs: int, *, generator: torch.Generator) -> None:
        """Begin episodes in `num_envs` copies; the generator chooses the attacked steps, if not all are."""
        if self.schedule is not None:
            self._selector = StepSelector(self.schedule, num_envs=num_envs, generator=generator)
            self._counter = BudgetCounter(self.schedule.steps, num_envs=num_envs)

    def perturb(self, batches: Sequence[DecisionBatch], live: Tensor) -> list[DecisionBatch]:
        """The decisions of one step, on what the attack shows the policies.

        Args:
            batches: the decisions, on what is really there.
            live: copies whose episode counts, `[E]` bool; nobody is attacked in the others.

        Raises:
            BudgetError: an attack that takes more than it may.
        """
        where = self._attacked_copies(batches, live)
        chosen = self._adversary_actions(batches, where)
        return [self._perturbed(batch, where, chosen) for batch in batches]

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are over, `[E]` bool."""
        if self._selector is not None and self._counter is not None:
            self._selector.restart(over)
            self._counter.restart(over)

    def _attacked_copies(self, batches: Sequence[DecisionBatch], live: Tensor) -> Tensor:
        """Copies that are attacked in this step, `[E]` bool: selected by the schedule, then counted."""
        if self.schedule is None or self._selector is None or self._counter is None:
            return live
        strategic = self.schedule.timing == "strategic"
        acting, preferences = acting_and_preferences(
            batches, list(self.agents), len(live), strategic=strategic
        )
        acting &= live.unsqueeze(-1)
        anybody = acting.any(1)
        where = self._selector.select(anybody, mean_where(preferences, acting)) & live
        self._counter.add(where & anybody)
        self.statistics.attacked_steps = self._counter.total
        return where

    def _adversary_actions(self, batches: Sequence[DecisionBatch], where: Tensor) -> Mapping[str, Tensor]:
        """Agent -> the actions of an adversary that looks at all attacked agents before each is attacked."""
        if not self.attack.acts_jointly:
            return {}
        seen = {}
        for batch in batches:
            for agent, copies, part in batch.split(batch.inputs):
                if agent in self.agents:
                    seen[agent] = part.new_zeros(len(where), part.shape[-1])
                    seen[agent][copies] = part * where[copies].unsqueeze(-1)
        return self.attack.choose_actions(seen, generator=self.generator) if seen else {}

    def _perturbed(self, batch: DecisionBatch, where: Tensor, chosen: Mapping[str, Tensor]) -> DecisionBatch:
        """The decisions of one batch, perturbed in the rows of attacked agents and copies."""
        targets = {agent: copies for agent, copies in batch.rows.items() if agent in self.agents}
        hit = torch.cat([where[copies] & (agent in targets) for agent, copies in batch.rows.items()])
        index, rest = hit.nonzero().flatten(), (~hit).nonzero().flatten()
        if not len(index):
            return batch
        attack = self.prepared[next(iter(targets))]
        if chosen:
            attack = attack.with_actions(
                torch.cat([chosen[agent][copies[where[copies]]] for agent, copies in targets.items()])
            )
        attacked = attack(batch.policy.select(index), batch.inputs[index], generator=self.generator)
        self.statistics.add(attacked, batch.policy.distribution)
        inputs, outputs = (
            batch.inputs.clone(),
            attacked.outputs.new_empty(len(hit), attacked.outputs.shape[-1]),
        )
        inputs[index], outputs[index] = attacked.perturbed, attacked.outputs
        if len(rest):
            with torch.no_grad():
                outputs[rest] = batch.policy.select(rest)(batch.inputs[rest])
        return batch.shown(inputs, outputs)

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
