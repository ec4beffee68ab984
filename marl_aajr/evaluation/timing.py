"""When an adversary strikes who may do so in m of the T steps of an episode, and who counts.

T is not known while an episode runs, nor is what is still to come. Both are learned beforehand, from the
selection episodes without attack: T is their median length, and the preferences seen there are what those of
the attacked episodes are measured against. So the decision rests on nothing but the past.

    random      strike with probability r / (T − t): m of T steps, each set of m equally likely
    strategic   strike where c(s) is among the m / T largest preferences of the selection episodes

with t decision steps played, r strikes left, and c(s) = max_a π(a|s) − min_a π(a|s) over the legal actions,
the mean of the attacked agents who must act (Lin 2017, arXiv 1703.06748: where a policy is indifferent, there
is nothing to gain). Either strikes at every step once r ≥ T − t: what is left is not wasted. An episode that
ends before T leaves some unspent.

Neither is believed: the judge's own `Ledger` counts the strikes of every episode.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from marl_aajr.attacks import BudgetError
from marl_aajr.core.distributions import ActionDistribution, Categorical, MultiCategorical
from marl_aajr.evaluation.budget import Timing
from marl_aajr.evaluation.view import View


@dataclass(frozen=True, eq=False)
class Pace:
    """What the timing of one row rests on.

    Attributes:
        steps: m.
        timing: random or strategic.
        length: T, the median length of the selection episodes in decision steps of the attacked agents.
        shortest: of them.
        longest: of them.
        preferences: c of every decision step of the selection episodes, ascending, `[N]`.
    """

    steps: int
    timing: Timing
    length: int
    shortest: int
    longest: int
    preferences: Tensor

    def __str__(self) -> str:
        lengths = {self.shortest, self.longest}
        return f"{self.steps} of {'–'.join(map(str, sorted(lengths)))} steps, {self.timing}"

    def unlikelihood(self, preference: Tensor, ties: Tensor) -> Tensor:
        """Share of the selection episodes' steps with a larger preference, `[E] -> [E]`.

        Equal ones are ordered at random, by `ties` in [0, 1): of steps that do not differ, any is struck.
        """
        # Rounding must not order what is equal: batches of other sizes differ in the last bits.
        slack = 1e-6
        above = len(self.preferences) - torch.searchsorted(self.preferences, preference + slack, right=True)
        equal = len(self.preferences) - above - torch.searchsorted(self.preferences, preference - slack)
        return (above + ties * equal) / max(len(self.preferences), 1)


class Clock:
    """Decides in which copies to strike, step by step; see the module.

    Args:
        pace: how often, and by what.
        num_envs: E.
        generator: as many numbers are drawn at each step whatever happens, so that all attacks strike at the
            same random times.
    """

    def __init__(self, pace: Pace, *, num_envs: int, generator: torch.Generator) -> None:
        self._pace, self._generator = pace, generator
        self._played = torch.zeros(num_envs, dtype=torch.long)
        self._struck = torch.zeros(num_envs, dtype=torch.long)

    def strike(self, due: Tensor, preference: Tensor) -> Tensor:
        """Where to strike in this step, `[E]` bool.

        Args:
            due: copies where an attacked agent must act, `[E]` bool.
            preference: c there, `[E]`.
        """
        chance = torch.rand(len(due), dtype=torch.float64, generator=self._generator)
        left = self._pace.steps - self._struck
        ahead = (self._pace.length - self._played).clamp_min(1)
        if self._pace.timing == "random":
            wanted = chance < left / ahead
        else:
            rare = self._pace.unlikelihood(preference, chance) < self._pace.steps / self._pace.length
            wanted = rare | (left >= ahead)
        struck = due & wanted & (left > 0)
        self._played += due
        self._struck += struck
        return struck

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are over, `[E]` bool."""
        self._played[over] = 0
        self._struck[over] = 0


class Ledger:
    """The judge's count of the strikes of every running episode.

    Attributes:
        total: strikes in all episodes.
    """

    def __init__(self, limit: int, *, num_envs: int) -> None:
        self._limit = limit
        self._strikes = torch.zeros(num_envs, dtype=torch.long)
        self.total = 0

    def enter(self, struck: Tensor) -> None:
        """Count one step, before it is played.

        Args:
            struck: copies in which somebody is lied to, `[E]` bool.

        Raises:
            BudgetError: an episode with more strikes than the budget allows.
        """
        self._strikes += struck
        self.total += int(struck.sum())
        if (most := int(self._strikes.max())) > self._limit:
            raise BudgetError(f"expected at most {self._limit} attacked steps an episode, got {most}")

    def restart(self, over: Tensor) -> None:
        """Begin new episodes where the old ones are over, `[E]` bool."""
        self._strikes[over] = 0


def has_preferences(distribution: ActionDistribution) -> bool:
    """Whether c is defined: the actions are discrete."""
    return isinstance(distribution, Categorical | MultiCategorical)


def preference(distribution: ActionDistribution, outputs: Tensor, legal: Tensor | None) -> Tensor:
    """c = max_a π(a) − min_a π(a) over the legal actions, `[B, m] -> [B]` float64.

    Of several actions at once, the mean of their preferences.

    Args:
        distribution: of discrete actions.
        outputs: logits, `[B, m]`.
        legal: legal actions, `[B, m]` bool; None: all.
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
def stakes(
    views: Sequence[View], agents: Sequence[str], num_envs: int, *, strategic: bool
) -> tuple[Tensor, Tensor]:
    """Who of the attacked agents must act, and what they care: `[E, n]` bool, and c `[E, n]` float64.

    c is 0 where an agent need not act, and everywhere unless `strategic`.
    """
    column = {agent: i for i, agent in enumerate(agents)}
    due = torch.zeros(num_envs, len(agents), dtype=torch.bool)
    preferences = torch.zeros(num_envs, len(agents), dtype=torch.float64)
    for view in views:
        if column.keys().isdisjoint(view.rows):
            continue
        values = torch.zeros(len(view.inputs), dtype=torch.float64)
        if strategic:
            policy = view.policy
            values = preference(policy.distribution, policy(view.inputs), policy.action_mask)
        for agent, index, part in view.split(values):
            if agent in column:
                due[index, column[agent]] = True
                preferences[index, column[agent]] = part
    return due, preferences


@dataclass
class Rehearsal:
    """What unattacked episodes say of when to strike; a `Spy`.

    Attributes:
        agents: who may be attacked, n of them.
        strategic: whether their preferences matter.
    """

    agents: Sequence[str]
    strategic: bool
    _episodes: list[Tensor] = field(default_factory=list)
    _due: list[Tensor] = field(default_factory=list)
    _preferences: list[Tensor] = field(default_factory=list)

    def __call__(self, views: Sequence[View], episode: Tensor) -> None:
        due, preferences = stakes(views, self.agents, len(episode), strategic=self.strategic)
        counted = episode >= 0
        self._episodes.append(episode[counted])
        self._due.append(due[counted])
        self._preferences.append(preferences[counted])

    def pace(self, agents: Collection[str], *, steps: int) -> Pace:
        """For an attack on some of the agents, in m = `steps` steps of each episode.

        Raises:
            ValueError: more steps than the longest episode has.
        """
        columns = [i for i, agent in enumerate(self.agents) if agent in agents]
        due = torch.cat(self._due)[:, columns]
        anybody = due.any(1)
        lengths = torch.cat(self._episodes)[anybody].bincount()
        lengths = lengths[lengths > 0].sort().values
        longest = int(lengths[-1]) if len(lengths) else 0
        if steps > longest:
            raise ValueError(
                f"expected at most {longest} steps in the budget, the length of the longest selection "
                f"episode, got steps={steps}; leave steps out to attack at every step"
            )
        return Pace(
            steps=steps,
            timing="strategic" if self.strategic else "random",
            length=int(lengths[len(lengths) // 2]),
            shortest=int(lengths[0]),
            longest=longest,
            preferences=mean_where(torch.cat(self._preferences)[:, columns], due)[anybody].sort().values,
        )


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each row over the columns that count, `[N, n] -> [N]`; 0 where none does."""
    return (values * where).sum(1) / where.sum(1).clamp_min(1)
