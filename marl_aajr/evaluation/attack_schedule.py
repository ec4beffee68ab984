"""The schedule of an attack that may act in m of the T steps of an episode, and the count of those steps.

T is not known while an episode runs, nor is what is still to come. Both are learned beforehand, from the
selection episodes without attack: T is their median length, and the preferences seen there are what those of
the attacked episodes are measured against. So the decision rests on nothing but the past.

    random      attack with probability r / (T − t): m of T steps, each set of m equally likely
    strategic   attack where c(s) is among the m / T largest preferences of the selection episodes

with t decision steps played, r attacked steps left, and c(s) = max_a π(a|s) − min_a π(a|s) over the legal
actions, the mean of the attacked agents who must act (Lin 2017, arXiv 1703.06748: where a policy is
indifferent, there is nothing to gain). Either attacks every step once r ≥ T − t: what is left is not wasted.
An episode that ends before T leaves some unspent.

Neither is believed: a `BudgetCounter` of its own counts the attacked steps of every episode.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from marl_aajr.attacks import BudgetError
from marl_aajr.core.distributions import ActionDistribution, Categorical, MultiCategorical
from marl_aajr.evaluation.budget import Timing
from marl_aajr.victims.stepper import DecisionBatch


@dataclass(frozen=True, eq=False)
class AttackSchedule:
    """The number m of attacked steps in each episode of one row, and what their choice rests on.

    Attributes:
        length: T, the median length of the selection episodes in decision steps of the attacked agents; there
            are a shortest and a longest.
        preferences: c of every decision step of the selection episodes, ascending, `[N]`.
    """

    steps: int
    timing: Timing
    length: int
    shortest: int
    longest: int
    preferences: Tensor

    def unlikelihood(self, preference: Tensor, ties: Tensor) -> Tensor:
        """Share of the selection episodes' steps with a larger preference, `[E] -> [E]`.

        Equal ones are ordered at random, by `ties` in [0, 1): of steps that do not differ, any is attacked.
        """
        # Rounding must not order what is equal: batches of other sizes differ in the last bits.
        slack = 1e-6
        above = len(self.preferences) - torch.searchsorted(self.preferences, preference + slack, right=True)
        equal = len(self.preferences) - above - torch.searchsorted(self.preferences, preference - slack)
        return (above + ties * equal) / max(len(self.preferences), 1)


class StepSelector:
    """Selects the copies to attack, step by step; see the module.

    As many random numbers are drawn at each step whatever happens, so that all attacks act at the same times.
    """

    def __init__(self, schedule: AttackSchedule, *, num_envs: int, generator: torch.Generator) -> None:
        self._schedule, self._generator = schedule, generator
        self._played = torch.zeros(num_envs, dtype=torch.long)
        self._attacked = torch.zeros(num_envs, dtype=torch.long)

    def select(self, acting: Tensor, preference: Tensor) -> Tensor:
        """Copies to attack in this step, `[E]` bool.

        `acting` are those where an attacked agent must act, `[E]` bool, `preference` is c there, `[E]`.
        """
        chance = torch.rand(len(acting), dtype=torch.float64, generator=self._generator)
        left = self._schedule.steps - self._attacked
        ahead = (self._schedule.length - self._played).clamp_min(1)
        if self._schedule.timing == "random":
            wanted = chance < left / ahead
        else:
            share = self._schedule.steps / self._schedule.length
            wanted = (self._schedule.unlikelihood(preference, chance) < share) | (left >= ahead)
        selected = acting & wanted & (left > 0)
        self._played += acting
        self._attacked += selected
        return selected

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are over, `[E]` bool."""
        self._played[over] = 0
        self._attacked[over] = 0


class BudgetCounter:
    """Counts the attacked steps of every running episode, whatever selected them.

    Attributes:
        total: attacked steps of all episodes.
    """

    def __init__(self, limit: int, *, num_envs: int) -> None:
        self._limit = limit
        self._attacked = torch.zeros(num_envs, dtype=torch.long)
        self.total = 0

    def add(self, attacked: Tensor) -> None:
        """Count one step, before it is played: the copies in which some observation is perturbed, `[E]` bool.

        Raises:
            BudgetError: an episode with more attacked steps than the budget allows.
        """
        self._attacked += attacked
        self.total += int(attacked.sum())
        if (most := int(self._attacked.max())) > self._limit:
            raise BudgetError(f"expected at most {self._limit} attacked steps an episode, got {most}")

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are over, `[E]` bool."""
        self._attacked[over] = 0


def has_preferences(distribution: ActionDistribution) -> bool:
    """Whether c is defined: the actions are discrete."""
    return isinstance(distribution, Categorical | MultiCategorical)


def preference(distribution: ActionDistribution, outputs: Tensor, legal: Tensor | None) -> Tensor:
    """c = max_a π(a) − min_a π(a) over the legal actions, `[B, m] -> [B]` float64.

    Of logits, and `legal` actions, `[B, m]` bool (None: all); of several actions at once, the mean.
    """
    parts = distribution.split(outputs) if isinstance(distribution, MultiCategorical) else (outputs,)
    allowed = torch.ones_like(outputs, dtype=torch.bool) if legal is None else legal
    masks = distribution.split(allowed) if isinstance(distribution, MultiCategorical) else (allowed,)
    spreads = []
    for logits, mask in zip(parts, masks, strict=True):
        chances = torch.softmax(logits.double(), -1)
        spreads.append(chances.amax(-1) - chances.masked_fill(~mask, torch.inf).amin(-1))
    return torch.stack(spreads).mean(0)


@torch.no_grad()
def acting_and_preferences(
    batches: Sequence[DecisionBatch], agents: Sequence[str], num_envs: int, *, strategic: bool
) -> tuple[Tensor, Tensor]:
    """The copies where each attacked agent must act, `[E, n]` bool, and its preference c there, float64.

    c is 0 where an agent need not act, and everywhere unless `strategic`.
    """
    column = {agent: i for i, agent in enumerate(agents)}
    acting = torch.zeros(num_envs, len(agents), dtype=torch.bool)
    preferences = torch.zeros(num_envs, len(agents), dtype=torch.float64)
    for batch in batches:
        if column.keys().isdisjoint(batch.rows):
            continue
        values = torch.zeros(len(batch.inputs), dtype=torch.float64)
        if strategic:
            policy = batch.policy
            values = preference(policy.distribution, policy(batch.inputs), policy.action_mask)
        for agent, copies, part in batch.split(values):
            if agent in column:
                acting[copies, column[agent]] = True
                preferences[copies, column[agent]] = part
    return acting, preferences


@dataclass
class ScheduleCalibration:
    """Lengths and preferences of unattacked episodes, which a schedule rests on; a `StepCallback`.

    The preferences of the agents that may be attacked are known if it is `strategic`.
    """

    agents: Sequence[str]
    strategic: bool
    _seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, batches: Sequence[DecisionBatch], episode: Tensor) -> None:
        found = acting_and_preferences(batches, self.agents, len(episode), strategic=self.strategic)
        acting, preferences = (part[episode >= 0] for part in found)
        self._seen.append((episode[episode >= 0], acting, preferences))

    def schedule(self, agents: Collection[str], *, steps: int) -> AttackSchedule:
        """The schedule of an attack on some of the agents, in m = `steps` steps of each episode.

        `ValueError`: more steps than the longest episode has.
        """
        columns = [i for i, agent in enumerate(self.agents) if agent in agents]
        episodes, acting, preferences = (torch.cat(part) for part in zip(*self._seen, strict=True))
        acting = acting[:, columns]
        anybody = acting.any(1)
        lengths = episodes[anybody].bincount()
        lengths = lengths[lengths > 0].sort().values
        longest = int(lengths[-1]) if len(lengths) else 0
        if steps > longest:
            raise ValueError(
                f"expected at most {longest} steps in the budget, the length of the longest selection "
                f"episode, got steps={steps}; leave steps out to attack at every step"
            )
        return AttackSchedule(
            steps=steps,
            timing="strategic" if self.strategic else "random",
            length=int(lengths[len(lengths) // 2]),
            shortest=int(lengths[0]),
            longest=longest,
            preferences=mean_where(preferences[:, columns], acting)[anybody].sort().values,
        )


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each row over the columns that count, `[N, n] -> [N]`; 0 where none does."""
    return (values * where).sum(1) / where.sum(1).clamp_min(1)
